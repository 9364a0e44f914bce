import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from m6rec.errors import BackboneError, CacheError
from m6rec.late_interaction.backbone import LateBackbone
from m6rec.late_interaction.cache import CacheConfig, SegmentCache
from m6rec.late_interaction.scorer import LateScorer, version_of
from m6rec.text.batch import branch_ends
from m6rec.tuners import TUNERS
from tests.contracts.backbone_contract import close
from tests.late_interaction.trees import BRANCHES, CASES, FAMILIES, TRUNK, batch, late, layout

ROWS = [layout(), layout(TRUNK[:2], BRANCHES[1:2]), layout(TRUNK[:3], [])]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def equal(scorer: LateScorer, *layouts) -> None:
    """Hold all states, and those of the branches' ends alone, against the backbone's."""
    tree = batch(*layouts)
    states = scorer.inner(tree)
    close(scorer(tree)[tree.keep], states[tree.keep])
    close(scorer.ends(tree), states[branch_ends(tree)])


@pytest.mark.parametrize(("granularity", "vectors"), [("token", 1), ("pooled", 1), ("pooled", 2)])
@pytest.mark.parametrize(("model_type", "layers"), CASES)
def test_cached_equals_uncached(tiny_backbone, model_type: str, layers: int, granularity: str, vectors: int) -> None:
    scorer = LateScorer(late(tiny_backbone(model_type), layers, granularity, vectors))
    equal(scorer, layout())
    equal(scorer, *ROWS)  # a batch of several users, partly from the cache
    equal(scorer, layout())  # all from the cache
    assert scorer.cache.stats.misses < scorer.cache.stats.memory_hits


@pytest.mark.parametrize("name", sorted(TUNERS))
@pytest.mark.parametrize("model_type", ["bert", "qwen3", "t5"])
def test_under_every_tuner(tiny_backbone, name: str, model_type: str) -> None:
    if name == "iak" or (name, model_type) in {("prefix", "t5"), ("bitfit", "gpt2")}:
        pytest.skip("refused by late interaction, or by the tuner")
    scorer = LateScorer(late(TUNERS.load(name)().attach(tiny_backbone(model_type)), 1))
    equal(scorer, *ROWS)
    equal(scorer, layout())


@pytest.mark.parametrize("pack_tokens", [1, 14])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_candidates_in_slices_and_packs(tiny_backbone, monkeypatch, model_type: str, pack_tokens: int) -> None:
    monkeypatch.setattr("m6rec.late_interaction.packs.PACK_TOKENS", pack_tokens)
    equal(LateScorer(late(tiny_backbone(model_type), 1), branches_at_once=2), *ROWS, layout())


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_branches_without_a_trunk(tiny_backbone, model_type: str) -> None:
    equal(LateScorer(late(tiny_backbone(model_type), 1)), layout([], [(0, [[20, 21], [30]]), (0, [[20], [30]])]))


def test_the_trunk_is_read_once_for_a_request_in_pieces(tiny_backbone, monkeypatch) -> None:
    scorer = LateScorer(late(tiny_backbone("gpt2"), 1))
    equal(scorer, layout(TRUNK, BRANCHES[:2]))
    monkeypatch.setattr("m6rec.late_interaction.scorer.read", lambda *_: pytest.fail("the trunk was read again"))
    equal(scorer, layout(TRUNK, BRANCHES[2:]))


def test_threads_share_a_scorer(tiny_backbone) -> None:
    scorer = LateScorer(late(tiny_backbone("gpt2"), 2), num_trunks=1)
    trees = [batch(layout(TRUNK[:size], [(2, [[20 + size], [30]])])) for size in (1, 2, 3, 4, 5)]
    expected = [scorer.inner(tree) for tree in trees]
    with ThreadPoolExecutor(4) as pool:
        for states, right in zip(pool.map(scorer, trees * 8), expected * 8, strict=True):
            close(states, right)


def test_a_history_of_one_event_and_of_none(tiny_backbone) -> None:
    scorer = LateScorer(late(tiny_backbone("bert"), 1))
    equal(scorer, layout(TRUNK[:1], [(0, segments) for _, segments in BRANCHES]))
    equal(scorer, layout([(0, [7]), (1, [8, 9])], [(1, segments) for _, segments in BRANCHES]))


def test_tasks_are_answered_by_the_ends_alone(tiny_backbone, monkeypatch) -> None:
    scorer, tree = LateScorer(late(tiny_backbone("bert"), 1)), batch(*ROWS)
    rows, columns = branch_ends(tree)
    expected = scorer.inner(tree)[rows, columns]
    close(scorer.classify(tree, rows, columns, lambda states, points: states + points[:, None]),
          expected + torch.arange(len(rows))[:, None])  # fmt: skip
    close(
        scorer.classify(tree, rows[:1], columns[:1] - 1, lambda states, _: states),
        scorer.inner(tree)[0, columns[:1] - 1],
    )
    monkeypatch.setattr(LateScorer, "forward", lambda *_: pytest.fail("all states were computed"))
    scorer.classify(tree, rows, columns, lambda states, _: states)


def test_no_candidates_and_ten_thousand(tiny_backbone) -> None:
    scorer = LateScorer(late(tiny_backbone("gpt2"), 2), branches_at_once=2048)
    equal(scorer, layout(TRUNK, []))
    many = [(2, [[20 + number % 7, 40 + number % 11], [30]]) for number in range(10_000)]
    tree = batch(layout(TRUNK, many))
    ends = scorer(tree)[0, torch.arange(10_000) * 3 + 12]
    some = batch(layout(TRUNK, [many[number] for number in (0, 76, 9_999)]))
    close(ends[[0, 76, 9_999]], scorer.inner(some)[0, torch.arange(3) * 3 + 12])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_request_that_does_not_fit_is_refused(tiny_backbone, model_type: str) -> None:
    scorer = LateScorer(late(tiny_backbone(model_type), 1))
    with pytest.raises(BackboneError, match="tokens on the way to a candidate, expected at most"):
        scorer(batch(layout([(0, [7]), *[(event, [8, 9]) for event in range(1, 2001)]], BRANCHES)))


def test_a_segment_longer_than_the_positions_is_refused(tiny_backbone) -> None:
    with pytest.raises(BackboneError, match="got 100 tokens"):
        LateScorer(late(tiny_backbone("gpt2"), 1))(batch(layout([(0, [7] * 100)], [])))


class TestTheCache:
    def test_of_other_weights_is_refused(self, tiny_backbone) -> None:
        backbone = late(tiny_backbone("bert"), 1)
        other = late(copy.deepcopy(tiny_backbone("bert")), 1)
        other.model.encoder.layer[0].output.dense.weight.add_(0.01)
        assert version_of(backbone) != version_of(other)
        with pytest.raises(CacheError, match="weights, tuner, layers and granularity"):
            LateScorer(other, SegmentCache(version_of(backbone)))

    def test_of_another_tuner_depth_or_granularity_is_refused(self, tiny_backbone) -> None:
        tuned = late(TUNERS.load("lora")().attach(tiny_backbone("bert")), 1)
        others = [
            late(tiny_backbone("bert"), 1),
            late(tiny_backbone("bert"), 2),
            late(tiny_backbone("bert"), 1, "pooled"),
        ]
        versions = [version_of(each) for each in (tuned, *others)]
        assert len(set(versions)) == 4
        for each, version in zip(others, versions, strict=False):
            with pytest.raises(CacheError, match="expected"):
                LateScorer(each, SegmentCache(version))

    def test_the_table_of_indices_is_no_part_of_what_is_cached(self, tiny_backbone) -> None:
        trained = late(tiny_backbone("bert"), 1)
        assert version_of(trained) == version_of(LateBackbone(tiny_backbone("bert"), trained.config))

    def test_on_disk_serves_another_process(self, tiny_backbone, tmp_path) -> None:
        backbone = late(tiny_backbone("qwen3"), 2)
        config = CacheConfig(disk=str(tmp_path / "states"))
        first = LateScorer(backbone, SegmentCache(version_of(backbone), config))
        states = first(batch())
        second = LateScorer(late(tiny_backbone("qwen3"), 2), SegmentCache(version_of(backbone), config))
        close(second(batch()), states)
        assert second.cache.stats.misses == 0

    def test_that_is_too_small_changes_nothing(self, tiny_backbone) -> None:
        backbone = late(tiny_backbone("bert"), 1)
        equal(LateScorer(backbone, SegmentCache(version_of(backbone), CacheConfig(memory_bytes=100))), *ROWS)

    def test_in_half_precision_the_first_request_scores_as_all_later_ones(self, tiny_backbone) -> None:
        backbone = late(tiny_backbone("bert"), 2)
        scorer = LateScorer(backbone, SegmentCache(version_of(backbone), CacheConfig(dtype="float16")), num_trunks=1)
        first, again = scorer(batch()), scorer(batch())
        assert torch.equal(first, again)
        close(first, backbone(batch()), 2e-2)
        assert not torch.equal(first, backbone(batch()))

    def test_holds_no_branches_of_t5(self, tiny_backbone) -> None:
        scorer = LateScorer(late(tiny_backbone("t5"), 2))
        scorer(batch())
        assert len(scorer.cache) == 4  # the distinct segments of the trunk

    def test_one_new_event_is_the_only_thing_read(self, tiny_backbone, monkeypatch) -> None:
        scorer, read = LateScorer(late(tiny_backbone("bert"), 2)), []
        scorer(batch())
        alone = LateBackbone.alone
        monkeypatch.setattr(LateBackbone, "alone", lambda self, table: read.append(table.ids) or alone(self, table))
        equal_to = batch(layout([*TRUNK, (3, [11, 13, 14])], BRANCHES))
        scorer(equal_to)
        assert [ids.tolist() for ids in read] == [[[11, 13, 14, -1]]]


def test_part_of_the_walk_is_not_cached(tiny_backbone) -> None:
    scorer = LateScorer(late(tiny_backbone("bert"), 2))
    close(scorer(batch(), range(1)), scorer.inner(batch(), range(1)))
    assert len(scorer.cache) == 0


def test_in_bfloat16_the_states_are_those_of_the_backbone(tiny_backbone) -> None:
    bare = tiny_backbone("bert")
    backbone = late(type(bare)(bare.model.to(torch.bfloat16), bare.tokenizer, bare.name), 2)
    states = LateScorer(backbone)(batch())
    assert states.dtype == torch.bfloat16
    close(states.float(), backbone(batch()).float(), 0.1)
