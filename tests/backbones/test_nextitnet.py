"""The walk of NextItNet: plain sequences as every backbone reads them, and a clear refusal of anything else."""

import pytest
import torch

from m6rec.backbones.cache import LayerCache
from m6rec.backbones.items import item_batch
from m6rec.backbones.nextitnet import NextItNetBackbone
from m6rec.backbones.resolve import resolve_backbone
from m6rec.errors import BackboneError
from m6rec.text.batch import TokenBatch
from m6rec.text.segments import CONTROL_TOKENS
from tests.contracts.backbone_contract import BLOCKS, BRANCHES, TRUNK, close, pad, plain_batch, stack, tree_batch

ITEMS = 40


def tiny(vectors: torch.Tensor | None = None, **sizes) -> NextItNetBackbone:
    """Return a backbone of two blocks (receptive field 19) whose weights are far from the library's flat start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = NextItNetBackbone.new(ITEMS, vectors, hidden_size=16, dilations=(1, 2), **sizes)
        for parameter in backbone.model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return backbone


@pytest.fixture(params=["ids", "vectors"])
def backbone(request) -> NextItNetBackbone:
    return tiny(torch.randn(ITEMS, 24) if request.param == "vectors" else None)


@torch.no_grad()
def walk(backbone: NextItNetBackbone, batch: TokenBatch) -> torch.Tensor:
    return backbone(batch)


def test_its_measures(backbone: NextItNetBackbone) -> None:
    assert backbone.family == "convolution"
    assert (backbone.num_layers, backbone.hidden_size, backbone.max_tokens) == (2, 16, 19)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert NextItNetBackbone.new(3).max_tokens == 121  # the paper's: 1, 2, 4, 8 four times


def test_the_walk_is_the_models_own_forward(backbone: NextItNetBackbone) -> None:
    batch = stack(plain_batch(TRUNK), plain_batch([7, 8, 9]))
    hidden, mask = backbone.embed(batch.ids, batch.positions), backbone.mask(batch)
    for index in range(backbone.num_layers):
        hidden = backbone.layer(index, hidden, mask, batch.positions)
    assert torch.equal(backbone.norm(hidden), walk(backbone, batch))
    close(walk(backbone, batch), backbone.model(batch.ids).last_hidden_state)
    first = backbone.layer(0, backbone.embed(batch.ids, batch.positions), mask, batch.positions)
    assert torch.equal(backbone(batch, layers=[0]), first)


def test_batched_equals_single_and_padding_never_matters(backbone: NextItNetBackbone) -> None:
    rows = [plain_batch(list(range(30))), plain_batch([7, 8, 9], [20, 21]), plain_batch([10])]
    together = walk(backbone, stack(*rows))
    for i, row in enumerate(rows):
        close(together[i : i + 1, : row.ids.shape[1]], walk(backbone, row))
    batch = pad(plain_batch(TRUNK), 4)
    before = walk(backbone, batch)
    batch.ids[:, len(TRUNK) :] = 33
    assert torch.equal(walk(backbone, batch)[:, : len(TRUNK)], before[:, : len(TRUNK)])


@pytest.mark.parametrize("changed", [0, 5, 29])
def test_a_state_sees_its_receptive_field_and_nothing_else(backbone: NextItNetBackbone, changed: int) -> None:
    batch = plain_batch(list(range(30)))
    before = walk(backbone, batch)
    batch.ids[0, changed] = 33
    differs = (before != walk(backbone, batch)).any(-1)[0].nonzero().flatten().tolist()
    assert differs == list(range(changed, min(30, changed + backbone.max_tokens)))


def test_a_branch_behind_the_trunk_is_one_sequence(backbone: NextItNetBackbone) -> None:
    close(walk(backbone, plain_batch([7, 8], [20, 21])), walk(backbone, plain_batch([7, 8, 20, 21])))
    blocks = tree_batch(TRUNK, BLOCKS, [(2, [20, 21])])  # blocks in time order hide nothing from a causal trunk
    close(walk(backbone, blocks), walk(backbone, plain_batch([*TRUNK, 20, 21])))


@pytest.mark.parametrize(
    "batch",
    [
        tree_batch(TRUNK, BLOCKS, BRANCHES),
        tree_batch(TRUNK, BLOCKS, [(0, [20])]),  # one branch, but not behind the trunk's end
        tree_batch([], [], [(0, [20]), (0, [21])]),
        stack(plain_batch([7, 8]), tree_batch([7], [0], [(0, [20]), (0, [21])])),
        item_batch(torch.tensor([[-1, 7, 8]])),
    ],
    ids=["tree", "early branch", "two branches alone", "second row", "padded on the left"],
)
def test_trees_are_refused(backbone: NextItNetBackbone, batch: TokenBatch) -> None:
    with pytest.raises(BackboneError, match="give one row a branch"):
        walk(backbone, batch)


def test_a_cache_is_refused(backbone: NextItNetBackbone) -> None:
    batch = plain_batch([7])
    with pytest.raises(BackboneError, match="no keys and values"):
        backbone.layer(
            0, backbone.embed(batch.ids, batch.positions), backbone.mask(batch), batch.positions, LayerCache()
        )


def test_control_tokens_are_the_last_columns_and_have_rows_of_their_own(backbone: NextItNetBackbone) -> None:
    ids = backbone.tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))
    assert ids == list(range(ITEMS + 1, ITEMS + 5))
    close(backbone.rows(torch.tensor([ids]))[0], backbone.control)
    hidden = walk(backbone, plain_batch([7, 8, ids[3]]))
    close(backbone.logits(hidden)[..., ITEMS + 1 :], hidden @ backbone.control.T)
    close(backbone.logits(hidden)[..., : ITEMS + 1], hidden @ backbone.model.items.weight.T)


def test_the_end_token_is_read_at_the_end(backbone: NextItNetBackbone) -> None:
    """PeterRec's [TCL]: behind the sequence its state sees all of it, before it nothing."""
    end = backbone.first_control + 3
    rows = torch.tensor([[3, 4, 5], [3, 6, -1]])
    states = walk(backbone, item_batch(rows, end))
    rows[:, 0] = 30
    after = walk(backbone, item_batch(rows, end))
    assert not torch.allclose(states[0, 3], after[0, 3], atol=1e-3)
    assert not torch.allclose(states[1, 2], after[1, 2], atol=1e-3)
    first = walk(backbone, plain_batch([end, 3, 4, 5]))[0, 0]
    assert torch.equal(first, walk(backbone, plain_batch([end, 30, 4, 5]))[0, 0])


def test_bfloat16_autocast(backbone: NextItNetBackbone) -> None:
    batch = plain_batch(TRUNK, [20])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = walk(backbone, batch)
        batch.ids[0, -1] = 33
        after = walk(backbone, batch)
    assert before.isfinite().all()
    assert torch.equal(before[:, :-1], after[:, :-1])


def test_given_vectors_stay_frozen_and_are_what_is_looked_up() -> None:
    vectors = torch.randn(ITEMS, 24)
    backbone = NextItNetBackbone.new(ITEMS, vectors, hidden_size=16)
    table = backbone.model.items
    assert torch.equal(table.frozen.weight[:ITEMS], vectors)
    close(table.frozen.weight[ITEMS], vectors.mean(0))
    close(backbone.rows(torch.tensor([[3]]))[0, 0], table.project(vectors[3]))


def test_a_saved_folder_gives_the_same_backbone(backbone: NextItNetBackbone, tmp_path) -> None:
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    found = resolve_backbone(tmp_path)
    assert isinstance(found, NextItNetBackbone)
    assert (found.fingerprint, found.max_tokens) == (backbone.fingerprint, backbone.max_tokens)
    assert found.first_control == backbone.first_control
    close(walk(found, plain_batch(TRUNK)), walk(backbone, plain_batch(TRUNK)))


def test_the_fingerprint_tells_weights_and_given_vectors_apart() -> None:
    vectors = torch.randn(ITEMS, 24)
    assert tiny(vectors).fingerprint == tiny(vectors).fingerprint
    assert len({tiny().fingerprint, tiny(vectors).fingerprint, tiny(vectors + 1).fingerprint}) == 3


def test_dropout_is_for_training_alone() -> None:
    backbone, batch = tiny(dropout=0.5), plain_batch(TRUNK)
    assert torch.equal(walk(backbone, batch), walk(backbone, batch))
    assert not torch.allclose(walk(backbone.train(), batch), walk(backbone, batch))
