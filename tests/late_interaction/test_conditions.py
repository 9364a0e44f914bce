"""Late interaction under conditions: a segment is kept with its condition, and never found under another."""

import pytest
import torch

from m6rec.backbones.conditions import Conditions, given
from m6rec.errors import BackboneError
from m6rec.late_interaction.scorer import LateScorer
from m6rec.text.batch import branch_ends
from tests.contracts.backbone_contract import close
from tests.late_interaction.trees import BRANCHES, TRUNK, batch, late, layout
from tests.tuners.test_conditioned import learnt, vectors


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def equal(scorer: LateScorer, conditions: Conditions, *layouts) -> torch.Tensor:
    """Hold a scorer given conditions against the late-interacting backbone given them."""
    tree = batch(*layouts)
    states, view = given(scorer.inner, conditions)(tree), given(scorer, conditions)
    close(view(tree)[tree.keep], states[tree.keep])
    close(view.ends(tree), states[branch_ends(tree)])
    return states


@pytest.mark.parametrize("form", ["modulation", "lora"])
@pytest.mark.parametrize(("model_type", "layers"), [("bert", 0), ("bert", 1), ("gpt2", 1), ("t5", 1), ("bert", 3)])
def test_cached_equals_uncached_whatever_was_asked_before(tiny_backbone, model_type, layers, form) -> None:
    scorer, found = LateScorer(late(learnt(tiny_backbone(model_type), form=form), layers)), vectors(4)
    first = Conditions.of_branches(found, torch.tensor([[0, 1, 2]]))
    one = equal(scorer, first, layout())
    misses = scorer.cache.stats.misses
    equal(scorer, first, layout())
    # The same conditions under other numbers are found again ...
    equal(scorer, Conditions.of_branches(found.flip(0), torch.tensor([[3, 2, 1]])), layout())
    assert scorer.cache.stats.misses == misses
    # ... and others are not, for the same words and the same trunk.
    other = equal(scorer, Conditions.of_branches(found, torch.tensor([[3, -1, 0]])), layout())
    if model_type != "t5":  # whose branches are never kept
        assert scorer.cache.stats.misses > misses
    assert not torch.allclose(one, other, atol=1e-3)
    bare = scorer.inner(batch())
    close(scorer(batch()), bare)
    assert not torch.allclose(one, bare, atol=1e-3)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_user_s_trunk_is_kept_under_her_own_condition(tiny_backbone, layers: int) -> None:
    scorer = LateScorer(late(learnt(tiny_backbone("bert")), layers))
    states = [equal(scorer, Conditions.of_rows(vectors(2)[row : row + 1]), layout()) for row in (0, 1, 0)]
    assert not torch.allclose(states[0], states[1], atol=1e-3)
    assert torch.equal(states[0], states[2])
    equal(scorer, Conditions.of_rows(vectors(2)), layout(), layout(TRUNK[:2], BRANCHES[1:2]))


def test_prompts_are_refused(tiny_backbone) -> None:
    scorer = LateScorer(late(learnt(tiny_backbone("bert"), form="prompt"), 1))
    with pytest.raises(BackboneError, match="a kept segment is read alone"):
        given(scorer, Conditions.of_rows(vectors(1)))
