"""The evaluator against a plain loop, and what it must never do."""

from dataclasses import replace

import numpy as np
import pytest

from m6rec.data.candidates import SampledCandidates
from m6rec.data.histories import Queries
from m6rec.errors import ConfigError, DataError
from m6rec.evaluation.evaluator import evaluate
from m6rec.metrics.ranking import NOT_FOUND


def ranks_by_loop(scores, queries, candidates=None, mask=True):
    """Rank with Python lists; scores must be distinct."""
    ranks = []
    for q, user in enumerate(queries.users):
        pool = (
            set(range(queries.history.num_items)) if candidates is None else {int(c) for c in candidates[q] if c >= 0}
        )
        if mask:
            pool -= set(queries.history.items[queries.history.of(user)].tolist())
        order = sorted(pool, key=lambda item: -scores[user, item])
        ranks += [order.index(t) + 1 if t in pool else NOT_FOUND for t in queries.targets_of(q).tolist()]
    return ranks


def distinct(log, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(log.num_items) for _ in range(log.num_users)]).astype(np.float32)


@pytest.mark.parametrize("mask", [True, False])
def test_ranks_and_lists_equal_a_plain_loop(log, fixed, mask):
    recommender, queries = fixed(), log.queries("test")
    recommender.scores = distinct(log)
    evaluation = evaluate(recommender, queries, mask_history=mask)
    assert evaluation.ranks.tolist() == ranks_by_loop(recommender.scores, queries, mask=mask)
    for q, user in enumerate(queries.users):
        seen = set(log.before("test").items[log.before("test").of(user)].tolist()) if mask else set()
        order = [i for i in np.argsort(-recommender.scores[user]) if i not in seen][:20]
        assert evaluation.lists[q].tolist() == order + [-1] * (20 - len(order))


def test_batching_and_order_of_queries_change_nothing_even_with_ties(log, fixed):
    recommender, queries = fixed(levels=3), log.queries("test")
    whole = evaluate(recommender, queries)
    single = evaluate(recommender, queries, batch_size=1)
    np.testing.assert_array_equal(whole.ranks, single.ranks)
    np.testing.assert_array_equal(whole.lists, single.lists)
    backwards = evaluate(recommender, queries.take(np.arange(len(queries))[::-1]))
    np.testing.assert_array_equal(backwards.ranks[::-1], whole.ranks)
    assert not np.array_equal(evaluate(recommender, queries, seed=1).ranks, whole.ranks)


def test_ranks_and_lists_agree_under_ties(log, fixed):
    evaluation = evaluate(fixed(levels=2), log.queries("test"), cutoffs=(log.num_items,))
    for rank, target, row in zip(evaluation.ranks, evaluation.targets, evaluation.lists, strict=True):
        assert row[rank - 1] == target


def several_targets(log, rng) -> Queries:
    """Return questions with two to four targets each, one of them twice."""
    history = log.before("valid")
    targets = [rng.choice(log.num_items, rng.integers(2, 5), replace=False) for _ in range(log.num_users)]
    targets = [np.r_[row, row[:1]] for row in targets]
    offsets = np.r_[0, np.cumsum([len(row) for row in targets])]
    return Queries(history, np.arange(log.num_users, dtype=np.int32), offsets, np.concatenate(targets).astype(np.int32))


def test_several_targets_count_once_each_and_seen_ones_are_misses(log, fixed):
    queries, recommender = several_targets(log, np.random.default_rng(0)), fixed()
    recommender.scores = distinct(log)
    evaluation = evaluate(recommender, queries)
    pairs = [(q, t) for q in range(len(queries)) for t in dict.fromkeys(queries.targets_of(q).tolist())]
    loop = iter(ranks_by_loop(recommender.scores, queries))
    expected = {(q, t): next(loop) for q in range(len(queries)) for t in queries.targets_of(q).tolist()}
    assert evaluation.targets.tolist() == [t for _, t in pairs]
    assert evaluation.ranks.tolist() == [expected[pair] for pair in pairs]
    assert evaluation.protocol["unreachable_targets"] == (evaluation.ranks == NOT_FOUND).sum() > 0


def test_sampled_candidates_are_named_so_and_hold_the_targets(log, fixed):
    queries, recommender = log.queries("test"), fixed()
    recommender.scores = distinct(log)
    sampled = SampledCandidates(9, seed=0)
    evaluation = evaluate(recommender, queries, candidates=sampled)
    negatives = np.concatenate([sampled.of(queries), queries.targets[:, None]], axis=1)
    assert evaluation.ranks.tolist() == ranks_by_loop(recommender.scores, queries, negatives)
    assert "ndcg@10[sampled=9]" in evaluation.means()
    with pytest.raises(DataError, match="expected one of"):
        evaluation.per_query("ndcg@10[sampled=8]")
    assert evaluate(recommender, queries, candidates=sampled.of(queries)).means() == evaluation.means()


def test_a_target_that_was_not_retrieved_is_a_miss(log, fixed):
    queries, recommender = log.queries("test"), fixed()
    recommender.scores = distinct(log)
    given = np.random.default_rng(0).integers(-1, log.num_items, (len(queries), 6))
    evaluation = evaluate(recommender, queries, candidates=given, include_targets=False)
    assert evaluation.ranks.tolist() == ranks_by_loop(recommender.scores, queries, given)
    assert evaluation.suffix == "[given=6]"
    assert (evaluation.lists[:, 6:] == -1).all()
    for row, pool in zip(evaluation.lists, given, strict=True):
        assert set(row[row >= 0].tolist()) <= set(pool.tolist())


def test_a_candidate_scorer_scores_only_candidates(log, fixed):
    class Cross:
        name = "cross"

        def score(self, queries):
            raise AssertionError("the catalogue was scored")

        def score_candidates(self, queries, candidates):
            return np.take_along_axis(recommender.scores[queries.users], np.maximum(candidates, 0), axis=1)

    recommender, queries = fixed(levels=4), log.queries("test")
    given = np.random.default_rng(0).integers(0, log.num_items, (len(queries), 6))
    np.testing.assert_array_equal(
        evaluate(Cross(), queries, candidates=given).ranks, evaluate(recommender, queries, candidates=given).ranks
    )


def test_no_recommender_sees_a_target(log, fixed):
    class Spy:
        name = "spy"

        def score(self, queries):
            assert not (queries.history.splits == 2).any()
            for q, user in enumerate(queries.users):
                assert not np.isin(queries.targets_of(q), queries.history.items[queries.history.of(user)]).any()
            return np.zeros((len(queries), queries.history.num_items), np.float32)

    evaluate(Spy(), log.queries("test"))


def test_metrics_coverage_and_counts(log, fixed):
    evaluation = evaluate(fixed(), log.queries("test"), cutoffs=(10, 5))
    assert evaluation.cutoffs == (5, 10)
    means = evaluation.means()
    assert set(means) == {f"{name}@{k}" for name in ("ndcg", "recall", "hr", "mrr") for k in (5, 10)}
    assert means["recall@10"] == pytest.approx((evaluation.ranks <= 10).mean())
    assert 0 < evaluation.beyond()["coverage@5"] <= 1
    train = log.before("train")
    np.testing.assert_array_equal(evaluation.item_counts, np.bincount(train.items, minlength=log.num_items))
    np.testing.assert_array_equal(evaluation.history_lengths, np.diff(log.before("test").offsets)[evaluation.users])


def test_wrong_input_is_told(log, fixed):
    queries, recommender = log.queries("test"), fixed()
    with pytest.raises(ConfigError, match="cutoffs"):
        evaluate(recommender, queries, cutoffs=())
    with pytest.raises(DataError, match="no queries"):
        evaluate(recommender, queries.take(np.arange(0)))
    with pytest.raises(DataError, match="one row a query"):
        evaluate(recommender, queries, candidates=np.zeros((3, 4), int))
    with pytest.raises(DataError, match="outside the catalogue"):
        evaluate(recommender, queries, candidates=np.full((len(queries), 2), log.num_items))
    narrow = replace(recommender, scores=recommender.scores[:, :-1])
    with pytest.raises(DataError, match="every item"):
        evaluate(narrow, queries)
