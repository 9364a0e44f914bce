"""What every backbone must keep. Inherit and give the fixture ``backbone``."""

from collections.abc import Sequence

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.text.batch import TokenBatch
from m6rec.text.segments import CONTROL_TOKENS


def plain_batch(ids: list[int], branch: Sequence[int] = ()) -> TokenBatch:
    """Return one row: a trunk of one block, then one branch."""
    return tree_batch(ids, [0] * len(ids), [(0, list(branch))] if branch else [])


def tree_batch(trunk: list[int], blocks: list[int], branches: list[tuple[int, list[int]]]) -> TokenBatch:
    """Return one row: a trunk with its blocks, and branches as (block it hangs on, ids)."""
    ids, block_of, branch_of, positions = list(trunk), list(blocks), [0] * len(trunk), list(range(len(trunk)))
    for number, (block, tokens) in enumerate(branches, start=1):
        start = max((p for p, b in zip(range(len(trunk)), blocks, strict=True) if b <= block), default=-1) + 1
        ids += tokens
        block_of += [block] * len(tokens)
        branch_of += [number] * len(tokens)
        positions += range(start, start + len(tokens))
    rows = [torch.tensor([row]) for row in (ids, positions, block_of, branch_of)]
    return TokenBatch(rows[0], torch.ones_like(rows[0], dtype=torch.bool), *rows[1:])


def pad(batch: TokenBatch, tokens: int) -> TokenBatch:
    """Pad a batch on the right by so many tokens."""
    fields = {name: value for name, value in vars(batch).items() if value is not None}
    return TokenBatch(**{name: torch.nn.functional.pad(value, (0, tokens)) for name, value in fields.items()})


def stack(*batches: TokenBatch) -> TokenBatch:
    """Join rows into one batch, padded to the longest."""
    longest = max(batch.ids.shape[1] for batch in batches)
    rows = [pad(batch, longest - batch.ids.shape[1]) for batch in batches]
    names = [name for name, value in vars(rows[0]).items() if value is not None]
    return TokenBatch(**{name: torch.cat([getattr(row, name) for row in rows]) for name in names})


TRUNK, BLOCKS = [7, 8, 9, 10, 11, 12], [0, 0, 1, 1, 2, 2]
BRANCHES = [(0, [20, 21, 22]), (1, [23, 24]), (2, [25, 26, 27]), (2, [28, 29])]


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


class BackboneContract:
    """The promises of the protocol, and of the tree."""

    @pytest.fixture
    def backbone(self) -> Backbone:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _no_gradients(self):
        with torch.no_grad():
            yield

    def test_states_have_the_shape_of_the_batch(self, backbone: Backbone) -> None:
        batch = stack(tree_batch(TRUNK, BLOCKS, BRANCHES), plain_batch([7, 8]))
        assert backbone(batch).shape == (2, len(TRUNK) + 10, backbone.hidden_size)

    def test_frozen_when_new(self, backbone: Backbone) -> None:
        assert not any(parameter.requires_grad for parameter in backbone.parameters())

    def test_forward_is_the_walk(self, backbone: Backbone) -> None:
        batch = tree_batch(TRUNK, BLOCKS, BRANCHES)
        hidden, mask = backbone.embed(batch.ids, batch.positions), backbone.mask(batch)
        for index in range(backbone.num_layers):
            hidden = backbone.layer(index, hidden, mask, batch.positions)
        assert torch.equal(backbone.norm(hidden), backbone(batch))

    def test_fewer_layers_stop_the_walk_early(self, backbone: Backbone) -> None:
        batch = plain_batch(TRUNK)
        hidden = backbone.layer(0, backbone.embed(batch.ids, batch.positions), backbone.mask(batch), batch.positions)
        assert torch.equal(backbone(batch, layers=[0]), backbone.norm(hidden))

    def test_a_branch_in_a_tree_equals_trunk_and_branch_alone(self, backbone: Backbone) -> None:
        tree, column = backbone(tree_batch(TRUNK, BLOCKS, BRANCHES)), len(TRUNK)
        for block, tokens in BRANCHES:
            seen = sum(b <= block for b in BLOCKS)
            alone = backbone(tree_batch(TRUNK[:seen], BLOCKS[:seen], [(block, tokens)]))
            close(tree[:, column : column + len(tokens)], alone[:, seen:])
            column += len(tokens)

    def test_a_trunk_prefix_equals_the_prefix_alone(self, backbone: Backbone) -> None:
        tree = backbone(tree_batch(TRUNK, BLOCKS, BRANCHES))
        close(tree[:, :4], backbone(tree_batch(TRUNK[:4], BLOCKS[:4], [])))

    def test_a_branch_without_a_trunk_stands_alone(self, backbone: Backbone) -> None:
        both = backbone(tree_batch([], [], [(0, [20, 21, 22]), (0, [23, 24])]))
        close(both[:, 3:], backbone(tree_batch([], [], [(0, [23, 24])])))
        assert both.isfinite().all()

    @pytest.mark.parametrize("changed", range(len(TRUNK), len(TRUNK) + 3))
    def test_a_branch_never_leaks_backwards(self, backbone: Backbone, changed: int) -> None:
        batch = tree_batch(TRUNK, BLOCKS, BRANCHES)
        before = backbone(batch)
        batch.ids[0, changed] = 33
        after = backbone(batch)
        assert torch.equal(before[:, :changed], after[:, :changed])
        assert not torch.allclose(before[:, changed], after[:, changed])
        assert torch.equal(before[:, len(TRUNK) + 3 :], after[:, len(TRUNK) + 3 :])

    def test_a_later_block_never_leaks_into_an_earlier_one(self, backbone: Backbone) -> None:
        batch = tree_batch(TRUNK, BLOCKS, BRANCHES)
        before = backbone(batch)
        batch.ids[0, 4] = 33
        after = backbone(batch)
        unaffected = (batch.blocks < 2)[0]
        assert torch.equal(before[:, unaffected], after[:, unaffected])
        assert not torch.allclose(before[:, -1], after[:, -1])

    def test_batched_equals_single(self, backbone: Backbone) -> None:
        rows = [tree_batch(TRUNK, BLOCKS, BRANCHES), plain_batch([7, 8, 9], [20, 21]), plain_batch([10])]
        rows.append(tree_batch([], [], [(0, [20, 21, 22])]))
        together = backbone(stack(*rows))
        for i, row in enumerate(rows):
            close(together[i : i + 1, : row.ids.shape[1]], backbone(row))

    def test_control_tokens_are_the_last_columns_and_have_rows_of_their_own(self, backbone: Backbone) -> None:
        ids = backbone.tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))
        assert ids == list(range(len(backbone.tokenizer) - 4, len(backbone.tokenizer)))
        close(backbone.rows(torch.tensor([ids]))[0], backbone.control)
        hidden = backbone(plain_batch([7, 8], [ids[2], 20]))
        logits = backbone.logits(hidden)
        assert logits.shape == (1, 4, len(backbone.tokenizer))
        before = logits[..., : ids[0]]
        backbone.control.mul_(2)
        close(backbone.logits(hidden)[..., : ids[0]], before)
        close(backbone.logits(hidden)[..., ids[0] :], 2 * logits[..., ids[0] :])

    def test_bfloat16_autocast_keeps_the_mask(self, backbone: Backbone) -> None:
        batch = tree_batch(TRUNK, BLOCKS, BRANCHES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before = backbone(batch)
            batch.ids[0, -1] = 33
            after = backbone(batch)
        assert before.isfinite().all()
        assert torch.equal(before[:, :-1], after[:, :-1])
        assert not torch.equal(before[:, -1], after[:, -1])
