"""Reading on equals reading everything at once: every family, every tuner, branches and steps, one row and many."""

from collections.abc import Sequence

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.backbones.past import Past, read, read_ends, read_on
from m6rec.errors import BackboneError
from m6rec.text.batch import TokenBatch
from m6rec.tuners import TUNERS
from tests.contracts.backbone_contract import BLOCKS, BRANCHES, TRUNK, close, plain_batch, stack, tree_batch
from tests.tuners.test_tuners import REFUSED

FAMILIES = ["bert", "gpt2", "llama", "qwen3", "t5"]


def columns(batch: TokenBatch, start: int, end: int | None = None) -> TokenBatch:
    """Return some columns of a batch."""
    return TokenBatch(**{name: value[:, start:end] for name, value in vars(batch).items() if value is not None})


def in_pieces(backbone: Backbone, batch: TokenBatch, ends: Sequence[int]) -> tuple[torch.Tensor, Past]:
    """Read a batch in pieces that end at ``ends``."""
    states, past = read(backbone, columns(batch, 0, ends[0]))
    parts = [states]
    for start, end in zip(ends, [*ends[1:], None], strict=True):
        states, past = read_on(backbone, past, columns(batch, start, end))
        parts.append(states)
    return torch.cat(parts, dim=1), past


def ragged() -> TokenBatch:
    """Return trees whose trunks have 6, 3 and 1 tokens, padded so that all branches begin at one column."""
    rows = [tree_batch(TRUNK, BLOCKS, BRANCHES), plain_batch([7, 8, 9], [20, 21]), plain_batch([7], [22, 23, 24])]
    trunks = [columns(row, 0, int((row.branches == 0).sum())) for row in rows]
    branches = [columns(row, int((row.branches == 0).sum())) for row in rows]
    first, second = stack(*trunks), stack(*branches)
    names = ("ids", "keep", "positions", "blocks", "branches")
    return TokenBatch(**{name: torch.cat([getattr(first, name), getattr(second, name)], dim=1) for name in names})


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", FAMILIES)
class TestEveryFamily:
    @pytest.fixture
    def backbone(self, tiny_backbone, model_type: str, attention: str) -> Backbone:
        return tiny_backbone(model_type, attention)

    @pytest.mark.parametrize("ends", [[6], [8], [6, 9, 11], [*range(6, 16)]])
    def test_pieces_equal_the_whole(self, backbone: Backbone, ends: list[int]) -> None:
        batch = tree_batch(TRUNK, BLOCKS, BRANCHES)
        states, past = in_pieces(backbone, batch, ends)
        close(states, backbone(batch))
        assert torch.equal(past.tokens.ids, batch.ids)

    @pytest.mark.parametrize("ends", [[6], [6, 7, 8]])
    def test_ragged_rows_equal_the_whole(self, backbone: Backbone, ends: list[int]) -> None:
        batch = ragged()
        states, _ = in_pieces(backbone, batch, ends)
        close(states[batch.keep], backbone(batch)[batch.keep])

    def test_candidates_share_a_trunk(self, backbone: Backbone) -> None:
        _, past = read(backbone, columns(tree_batch(TRUNK, BLOCKS, []), 0))
        rows = [tree_batch(TRUNK, BLOCKS, [branch]) for branch in BRANCHES]
        many = past.take(torch.zeros(len(rows), dtype=torch.long))
        states, grown = read_on(backbone, many, columns(stack(*rows), len(TRUNK)))
        for state, row in zip(states, rows, strict=True):
            whole = backbone(row)[0, len(TRUNK) :]
            close(state[: len(whole)], whole)
        assert all(
            len(cache.kept[0].keys) == 1 for cache in grown.caches if cache.kept and backbone.family != "seq2seq"
        )

    def test_beams_are_reordered(self, backbone: Backbone) -> None:
        batch = ragged()
        _, past = in_pieces(backbone, batch, [6, 7])
        order = torch.tensor([2, 0, 0, 1, 2])
        follow = past.take(order).follow(torch.tensor([[30], [31], [32], [33], [34]]))
        states, _ = read_on(backbone, past.take(order), follow)
        for row, source in enumerate(order.tolist()):
            single = past.take(torch.tensor([source]))
            alone, _ = read_on(backbone, single, single.follow(follow.ids[row : row + 1]))
            close(states[row], alone[0])

    def test_reading_on_leaves_the_past_as_it_is(self, backbone: Backbone) -> None:
        _, past = read(backbone, plain_batch(TRUNK))
        batch = past.follow(torch.tensor([[20, 21]]))
        first, _ = read_on(backbone, past, batch)
        again, _ = read_on(backbone, past, batch)
        assert torch.equal(first, again)

    def test_a_branch_without_a_trunk(self, backbone: Backbone) -> None:
        batch = tree_batch([], [], [(0, [20, 21, 22])])
        states, _ = in_pieces(backbone, batch, [1, 2])
        close(states, backbone(batch))

    def test_follow_goes_on_where_the_branch_ended(self, backbone: Backbone) -> None:
        whole = plain_batch(TRUNK, [20, 21, 22, 23])
        _, past = read(backbone, plain_batch(TRUNK))
        states, past = read_on(backbone, past, past.follow(torch.tensor([[20, 21]])))
        more, past = read_on(backbone, past, past.follow(torch.tensor([[22]])))
        last, past = read_on(backbone, past, past.follow(torch.tensor([[23]])))
        close(torch.cat([states, more, last], dim=1), backbone(whole)[:, len(TRUNK) :])
        assert torch.equal(past.tokens.positions, whole.positions)

    def test_bfloat16_autocast(self, backbone: Backbone) -> None:
        batch = tree_batch(TRUNK, BLOCKS, BRANCHES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states, _ = in_pieces(backbone, batch, [6, 9])
            close(states.float(), backbone(batch).float(), tolerance=0.1)


@pytest.mark.parametrize("name", sorted(TUNERS))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_tuner(tiny_backbone, name: str, model_type: str) -> None:
    if (name, model_type) in REFUSED:
        pytest.skip("the tuner refuses the family")
    tuned = TUNERS.load(name)().attach(tiny_backbone(model_type))
    for parameter in tuned.parameters():  # what starts at zero would hide a cache that forgets it
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    batch = ragged()
    states, past = in_pieces(tuned, batch, [6, 7, 8])
    close(states[batch.keep], tuned(batch)[batch.keep])
    follow = past.follow(torch.full((3, 1), 33))
    one_more, _ = read_on(tuned, past, follow)
    whole = TokenBatch(
        **{
            field: torch.cat([getattr(batch, field), getattr(follow, field)], dim=1)
            for field in ("ids", "keep", "positions", "blocks", "branches")
        }
    )
    close(one_more, tuned(whole)[:, -1:])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_gradients_reach_what_was_read_before(tiny_backbone, model_type: str) -> None:
    tuned = TUNERS.load("lora")().attach(tiny_backbone(model_type))
    batch, gradients = tree_batch(TRUNK, BLOCKS, BRANCHES), []
    for run in (lambda: in_pieces(tuned, batch, [6, 9])[0], lambda: tuned(batch)):
        tuned.zero_grad()
        with torch.enable_grad():
            run()[:, -1].square().sum().backward()
        gradients.append([p.grad.clone() for p in tuned.parameters() if p.grad is not None])
    assert gradients[0]
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, tolerance=1e-4)


def test_a_walk_that_takes_one_layer_twice_keeps_two_caches(tiny_backbone) -> None:
    backbone, batch, walk = tiny_backbone("bert"), plain_batch(TRUNK, [20, 21]), [0, 1, 1, 0]
    first, past = read(backbone, columns(batch, 0, 6), layers=walk)
    second, _ = read_on(backbone, past, columns(batch, 6))
    close(torch.cat([first, second], dim=1), backbone(batch, layers=walk))


def test_a_walk_may_begin_at_a_later_layer(tiny_backbone) -> None:
    backbone, batch = tiny_backbone("gpt2"), plain_batch(TRUNK, [20, 21])
    entering = backbone.layer(0, backbone.embed(batch.ids, batch.positions), backbone.mask(batch), batch.positions)
    first, past = read(backbone, columns(batch, 0, 6), hidden=entering[:, :6], layers=[1, 2])
    second, _ = read_on(backbone, past, columns(batch, 6), hidden=entering[:, 6:])
    close(torch.cat([first, second], dim=1), backbone(batch))


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_the_trunk_may_grow_by_later_blocks(tiny_backbone, model_type: str) -> None:
    backbone, batch = tiny_backbone(model_type), tree_batch(TRUNK, BLOCKS, [])
    close(in_pieces(backbone, batch, [2, 4])[0], backbone(batch))


@pytest.mark.parametrize(("model_type", "block"), [("bert", 2), ("t5", 3)])
def test_a_trunk_that_was_seen_may_not_grow(tiny_backbone, model_type: str, block: int) -> None:
    backbone = tiny_backbone(model_type)
    _, past = read(backbone, tree_batch(TRUNK, BLOCKS, []))
    late = TokenBatch(*(torch.tensor([[value]]) for value in (9, True, 6, block, 0)))
    with pytest.raises(BackboneError, match="read the trunk anew"):
        read_on(backbone, past, late)


def test_other_rows_than_were_read_are_refused(tiny_backbone) -> None:
    backbone = tiny_backbone("bert")
    _, past = read(backbone, plain_batch(TRUNK))
    with pytest.raises(BackboneError, match="got 2 rows to read on from 1"):
        read_on(backbone, past, stack(plain_batch([], [20]), plain_batch([], [21])))


def test_a_convolution_is_refused(tiny_backbone) -> None:
    with pytest.raises(BackboneError, match="read every sequence whole"):
        read(tiny_backbone("nextitnet"), plain_batch(TRUNK))


def ends_of(backbone: Backbone, batch: TokenBatch, since: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return every branch's last state from reading on, and from reading for the ends alone."""
    _, past = read(backbone, columns(batch, 0, since))
    new = columns(batch, since)
    last = [[c for c in range(new.ids.shape[1]) if _ends(new, row, c)] for row in range(new.size)]
    ends = torch.tensor([row + [-1] * (max(map(len, last)) - len(row)) for row in last])
    states, _ = read_on(backbone, past, new)
    expected = states.gather(1, ends.clamp(min=0)[..., None].expand(-1, -1, states.shape[-1]))
    return read_ends(backbone, past, new, ends)[ends >= 0], expected[ends >= 0]


def _ends(batch: TokenBatch, row: int, column: int) -> bool:
    after = column + 1 == batch.ids.shape[1] or batch.branches[row, column + 1] != batch.branches[row, column]
    return bool(batch.keep[row, column] and (after or not batch.keep[row, column + 1]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_ends_of_branches_alone(tiny_backbone, model_type: str, attention: str) -> None:
    backbone = tiny_backbone(model_type, attention)
    close(*ends_of(backbone, tree_batch(TRUNK, BLOCKS, BRANCHES), 6))
    close(*ends_of(backbone, ragged(), 6))


@pytest.mark.parametrize("name", ["lora", "prefix", "p-tuning", "option-adapter", "peterrec"])
@pytest.mark.parametrize("model_type", ["bert", "qwen3"])
def test_the_ends_of_branches_alone_under_tuners(tiny_backbone, name: str, model_type: str) -> None:
    close(*ends_of(TUNERS.load(name)().attach(tiny_backbone(model_type)), tree_batch(TRUNK, BLOCKS, BRANCHES), 6))


def test_at_the_last_layer_the_others_are_keys_and_no_more(tiny_backbone, monkeypatch) -> None:
    backbone, sizes = tiny_backbone("gpt2"), []
    _, past = read(backbone, plain_batch(TRUNK))
    feed = backbone.model.transformer.h[-1].mlp
    monkeypatch.setattr(feed, "forward", lambda states, run=feed.forward: sizes.append(states.shape[1]) or run(states))
    new = columns(tree_batch(TRUNK, BLOCKS, BRANCHES), 6)
    read_ends(backbone, past, new, torch.tensor([[2, 4]]))
    assert sizes == [2]
