"""A condition a row or a branch: no condition is the bare model, batched is looped, in one pass and word by word."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from m6rec.backbones.base import Backbone, WrappedBackbone
from m6rec.backbones.conditions import Conditions, condition_size, given
from m6rec.backbones.past import read, read_on
from m6rec.decoding import DecodingConfig, Opening, write
from m6rec.errors import BackboneError, ConfigError, TunerError
from m6rec.nn.modulation import OPS, modulate
from m6rec.text.batch import TokenBatch
from m6rec.text.tokenize import TextTokenizer
from m6rec.tuners.conditioned import ConditionedBackbone, ConditionedConfig, ConditionedTuner
from tests.contracts.backbone_contract import BLOCKS, BRANCHES, TRUNK, close, plain_batch, stack, tree_batch
from tests.contracts.tuner_contract import TunerContract, states
from tests.decoding.conftest import tree

FORMS = ["modulation", "lora", "prompt"]
BATCH = stack(tree_batch(TRUNK, BLOCKS, BRANCHES), plain_batch([7, 8, 9], [20, 21]), plain_batch([11, 12], [22]))


def vectors(count: int, size: int = 32) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(5))


class Always(WrappedBackbone):
    """A backbone under one condition, whoever asks."""

    def forward(self, batch, layers=None):
        return given(self.inner, Conditions.of_rows(vectors(1)))(batch, layers)


class AlwaysTuner(ConditionedTuner):
    def attach(self, backbone: Backbone) -> Backbone:
        return Always(super().attach(backbone))


class ConditionedContract(TunerContract):
    name = "conditioned"
    fixed: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(params=["bert", "gpt2", "t5"])
    def backbone(self, tiny_backbone, request: pytest.FixtureRequest) -> Backbone:
        return tiny_backbone(request.param)

    def tuner(self, **settings: Any) -> AlwaysTuner:
        return AlwaysTuner(ConditionedConfig(**{"width": 8, **self.fixed, **settings}))


class TestModulation(ConditionedContract):
    settings: ClassVar[dict[str, Any]] = {"width": 5}


class TestLowRank(ConditionedContract):
    fixed, settings = {"form": "lora"}, {"rank": 2}


class TestPrompt(ConditionedContract):
    identity, fixed, settings = False, {"form": "prompt", "num_virtual_tokens": 3}, {"num_virtual_tokens": 2}


class TestMaxAndMin(ConditionedContract):
    fixed, settings = {"ops": ("max+min", "mul", "add")}, {"ops": ("mul",)}

    @pytest.fixture
    def backbone(self, tiny_backbone) -> Backbone:
        return tiny_backbone("bert")


def learnt(backbone: Backbone, **settings: Any) -> ConditionedBackbone:
    """Return a conditioned backbone whose hypernetwork says something else of every condition."""
    tuned = ConditionedTuner(ConditionedConfig(**{"width": 8, "num_virtual_tokens": 3, **settings})).attach(backbone)
    assert isinstance(tuned, ConditionedBackbone)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in [*tuned.hypernetwork.parameters(), *(tuned.change or torch.nn.Module()).parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return tuned.eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen3", "t5"])
def test_a_batch_under_conditions_equals_its_rows_alone(tiny_backbone, model_type: str, form: str) -> None:
    tuned, found = learnt(tiny_backbone(model_type), form=form), vectors(3)
    together = states(tuned.given(Conditions.of_rows(found)), BATCH)
    for row in range(3):
        one = BATCH.take(torch.tensor([row]))
        alone = states(tuned.given(Conditions.of_rows(found[row : row + 1])), one)
        close(together[row : row + 1], alone)
        other = states(tuned.given(Conditions.of_rows(found[row - 1 : row or None])), one)
        assert not torch.allclose(alone, other, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_no_condition_is_the_bare_model_bit_for_bit(tiny_backbone, form: str) -> None:
    before = states(tiny_backbone("bert"), BATCH)
    tuned = learnt(tiny_backbone("bert"), form=form)
    assert torch.equal(states(tuned, BATCH), before)
    if form != "prompt":
        none = Conditions(vectors(2), torch.full((1, 1), -1))
        assert torch.equal(states(tuned.given(none), BATCH), before)


@pytest.mark.parametrize("form", ["modulation", "lora"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_each_branch_under_its_own_condition_over_a_trunk_under_none(tiny_backbone, model_type: str, form: str) -> None:
    tuned, found, column = learnt(tiny_backbone(model_type), form=form), vectors(4), len(TRUNK)
    numbers = torch.tensor([2, -1, 0, 3])
    tree_of_all = tree_batch(TRUNK, BLOCKS, BRANCHES)
    whole = states(tuned.given(Conditions.of_branches(found, numbers[None])), tree_of_all)
    bare = states(tuned, tree_of_all)
    assert torch.equal(whole[:, :column], bare[:, :column])
    for number, (block, ids) in zip(numbers.tolist(), BRANCHES, strict=True):
        one = tree_batch(TRUNK, BLOCKS, [(block, ids)])
        alone = states(tuned.given(Conditions.of_branches(found, torch.tensor([[number]]))), one)
        close(whole[:, column : column + len(ids)], alone[:, len(TRUNK) :])
        assert (number < 0) == torch.equal(alone[:, len(TRUNK) :], states(tuned, one)[:, len(TRUNK) :])
        column += len(ids)


@pytest.mark.parametrize("form", ["modulation", "lora"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
@torch.no_grad()
def test_branches_that_are_read_on_equal_the_tree_in_one_pass(tiny_backbone, model_type: str, form: str) -> None:
    tuned = learnt(tiny_backbone(model_type), form=form)
    view = tuned.given(Conditions.of_branches(vectors(4), torch.tensor([[2, 0, 3, 1]])))
    whole, column = tree_batch(TRUNK, BLOCKS, BRANCHES), len(TRUNK)
    fields = {name: value for name, value in vars(whole).items() if value is not None}
    trunk = TokenBatch(**{name: value[:, :column] for name, value in fields.items()})
    branches = TokenBatch(**{name: value[:, column:] for name, value in fields.items()})
    _, past = read(view, trunk)
    close(read_on(view, past, branches)[0], view(whole)[:, column:])


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_writes_under_conditions_what_each_row_alone_writes(tiny_backbone, model_type, form, strategy) -> None:
    tuned, found = learnt(tiny_backbone(model_type), form=form), vectors(3)
    text = TextTokenizer(tuned.tokenizer)
    ends, begin = frozenset([text.control_ids["[EOS]"]]), text.control_ids["[BOS]"]
    # The same words thrice, each time a prompt of its own: what differs is the condition alone.
    openings = [Opening(tree(text.text("the user bought a red shirt"), [begin]), ends) for _ in range(3)]
    config = DecodingConfig(strategy, max_new_tokens=5, num_beams=2)
    together = write(tuned.given(Conditions.of_rows(found)), text, openings, config)
    for row, opening in enumerate(openings):
        view = tuned.given(Conditions.of_rows(found[row : row + 1]))
        (alone,) = write(view, text, [opening], config)
        assert together[row].ids == alone.ids
        assert together[row].log_prob == pytest.approx(alone.log_prob, abs=1e-3)
    assert len({answer.log_prob for answer in together}) == 3


@pytest.mark.parametrize("form", FORMS)
def test_the_hypernetwork_gets_a_gradient_and_moves_and_the_base_does_not(tiny_backbone, form: str) -> None:
    tuner = ConditionedTuner(ConditionedConfig(form=form, width=8))
    tuned = tuner.attach(tiny_backbone("gpt2"))
    before = {name: weight.clone() for name, weight in tuned.hypernetwork.named_parameters()}
    optimizer = torch.optim.SGD(tuner.parameters().values(), lr=0.1)
    for _ in range(3):  # zero at the start: the layer below the last moves from the second step on
        view = tuned.given(Conditions.of_rows(vectors(3)))
        optimizer.zero_grad()
        (view(BATCH)[BATCH.keep] * vectors(int(BATCH.keep.sum()))).sum().backward()
        optimizer.step()
    assert all(not torch.equal(weight, before[name]) for name, weight in tuned.hypernetwork.named_parameters())
    assert all(weight.grad is None for weight in tuned.inner.model.parameters())


def test_every_operation_does_what_its_name_says_and_a_gate_goes_part_of_the_way() -> None:
    x, p = torch.tensor([-1.0, 2.0]), torch.tensor([0.5, -3.0])
    expected = {"max": [0.5, 2.0], "min": [-1.0, -3.0], "mul": [-1.5, -4.0], "add": [-0.5, -1.0]}
    for op in OPS:
        assert modulate(x, op, p).tolist() == expected[op]
        assert torch.equal(modulate(x, op, p, torch.zeros(())), x)
        assert torch.equal(modulate(x, op, p, torch.tensor(0.5)), (x + torch.tensor(expected[op])) / 2)


def test_a_layer_without_operations_and_gates_a_layer(tiny_backbone) -> None:
    tuned = learnt(tiny_backbone("bert"), ops=("max+mul", "", "add"), gated=True)
    assert sorted(tuned.change.gates) == ["add-2", "max-0", "mul-0"]
    states(tuned.given(Conditions.of_rows(vectors(1))), BATCH)


def test_views_find_the_conditioned_backbone_inside_others(tiny_backbone) -> None:
    bare, conditions = tiny_backbone("bert"), Conditions.of_rows(vectors(1))
    assert given(bare, conditions) is bare
    assert condition_size(bare) is None
    outer = WrappedBackbone(bare)
    assert given(outer, conditions) is outer
    tuned = learnt(bare)
    wrapped = WrappedBackbone(tuned)
    assert condition_size(wrapped) == 32
    close(states(given(wrapped, conditions), BATCH), states(tuned.given(conditions), BATCH))
    assert torch.equal(states(wrapped, BATCH), states(bare, BATCH))


def test_says_what_conditions_it_cannot_take(tiny_backbone) -> None:
    tuned = learnt(tiny_backbone("bert"))
    with pytest.raises(BackboneError, match="got conditions of 8 numbers, expected 32"):
        tuned.given(Conditions.of_rows(vectors(3, 8)))
    with pytest.raises(BackboneError, match="a batch of 3 rows under the conditions of 2"):
        tuned.given(Conditions.of_rows(vectors(2)))(BATCH)
    with pytest.raises(BackboneError, match="got condition 4, expected -1"):
        Conditions.of_branches(vectors(4), torch.tensor([[0, 4]]))
    with pytest.raises(BackboneError, match="not finite"):
        Conditions.of_rows(torch.tensor([[float("nan")]]))
    with pytest.raises(BackboneError, match="a batch of 4 branches under the conditions of 2"):
        tuned.given(Conditions.of_branches(vectors(2), torch.tensor([[0, 1]])))(BATCH)
    with pytest.raises(BackboneError, match=r"expected backbone\.extend"):
        tuned.given(Conditions.of_rows(vectors(1))).mask(BATCH)
    with pytest.raises(BackboneError, match="what stands before a text is read by all of it"):
        learnt(tiny_backbone("gpt2"), form="prompt").given(Conditions.of_branches(vectors(2), torch.tensor([[0, 1]])))


def test_says_which_settings_it_cannot_take(tiny_backbone) -> None:
    with pytest.raises(ConfigError, match="width: got 0"):
        ConditionedConfig(width=0)
    for wrong in ("add+mul", "div", "mul+mul"):
        with pytest.raises(ConfigError, match="each once and in this order"):
            ConditionedConfig(ops=(wrong,))
    for ops in (("mul", "add"), ("",)):
        with pytest.raises(TunerError, match="one for each of the 3 layers"):
            ConditionedTuner(ConditionedConfig(ops=ops)).attach(tiny_backbone("bert"))
    with pytest.raises(TunerError, match="expected less than the 96 tokens"):
        ConditionedTuner(ConditionedConfig(form="prompt", num_virtual_tokens=96)).attach(tiny_backbone("bert"))


def test_a_condition_of_another_width_saves_and_loads(tiny_backbone, tmp_path: Path) -> None:
    conditions, found = Conditions.of_rows(vectors(3, 6)), []
    for step in range(2):
        tuner = ConditionedTuner(ConditionedConfig(size=6, width=8))
        tuned = tuner.attach(tiny_backbone("bert"))
        if step:
            tuner.load(tmp_path)
        else:
            with torch.no_grad():
                tuned.hypernetwork.outer.weight.normal_()
            tuner.save(tmp_path)
        found.append(states(tuned.given(conditions), BATCH))
    close(*found)
    wider = ConditionedTuner(ConditionedConfig(size=7, width=8))
    wider.attach(tiny_backbone("bert"))
    with pytest.raises(TunerError, match="other settings"):
        wider.load(tmp_path)


def test_rows_keep_their_conditions_wherever_they_go() -> None:
    batch = replace(BATCH, conditions=torch.tensor([[0], [1], [-1]]))
    assert batch.take(torch.tensor([2, 0])).conditions.tolist() == [[-1], [0]]
    assert batch.to("cpu").conditions.tolist() == [[0], [1], [-1]]
    assert np.all(Conditions.of_branches(vectors(2), torch.tensor([[1, 0]])).numbers.numpy() == [[-1, 1, 0]])
