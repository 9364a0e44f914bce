from dataclasses import replace

import numpy as np
import pytest

from m6rec.errors import DataError
from m6rec.evaluation.bootstrap import compare, intervals, resample
from m6rec.evaluation.evaluator import evaluate


def test_intervals_have_the_width_of_the_normal_ones(log, fixed):
    evaluation = evaluate(fixed(), log.queries("test"))
    values = evaluation.per_query("ndcg@10")
    interval = intervals(evaluation, draws=2000)["ndcg@10"]
    error = values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.35 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.35 * error)


def test_the_seed_decides(log, fixed):
    evaluation = evaluate(fixed(), log.queries("test"))
    same = [resample(evaluation, 20, seed)["recall@5"] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_queries_of_one_user_are_drawn_together(log, fixed):
    evaluation = evaluate(fixed(), log.queries("test"))
    everyone = replace(evaluation, users=np.zeros_like(evaluation.users))
    interval = intervals(everyone, draws=50)["ndcg@10"]
    assert interval.low == interval.high == pytest.approx(interval.mean)


def test_a_better_run_is_found_better_and_a_run_equals_itself(log, fixed):
    queries, weak = log.queries("test"), fixed(name="weak")
    strong = replace(weak, name="strong", scores=weak.scores.copy())
    lucky = queries.users[::3]
    strong.scores[lucky, queries.targets[::3]] += 2000
    weak, strong = evaluate(weak, queries), evaluate(strong, queries)
    comparison = compare(strong, weak, "ndcg@10")
    assert comparison.difference.low > 0
    assert comparison.ratio.low > 1
    assert comparison.p_value < 0.05
    assert comparison.difference.mean == pytest.approx(strong.means()["ndcg@10"] - weak.means()["ndcg@10"])
    # Pairing takes the users' own spread out: narrower than two independent intervals side by side.
    widths = [i.high - i.low for i in (intervals(strong)["ndcg@10"], intervals(weak)["ndcg@10"])]
    assert comparison.difference.high - comparison.difference.low < np.hypot(*widths)
    same = compare(weak, weak, "ndcg@10")
    assert (same.difference.low, same.difference.high, same.p_value) == (0, 0, 1)


def test_only_the_same_queries_can_be_compared(log, fixed):
    test, valid = (evaluate(fixed(), log.queries(split)) for split in ("test", "valid"))
    with pytest.raises(DataError, match="different queries"):
        compare(test, valid, "ndcg@10")
    with pytest.raises(DataError, match="expected one that both have"):
        compare(test, test, "ndcg@7")
