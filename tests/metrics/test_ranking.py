"""Our metrics against ir_measures and scikit-learn, and by hand."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, Success, nDCG
from sklearn.metrics import roc_auc_score

from m6rec.metrics.ranking import (
    NOT_FOUND,
    auc,
    find_ranks,
    hit_rate,
    mrr,
    ndcg,
    ranking_metric,
    recall,
    uauc,
    user_aucs,
)


def random_lists(seed: int, num_queries: int = 40, num_items: int = 60, length: int = 25):
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(num_items)[:length] for _ in range(num_queries)])
    counts = rng.integers(1, 8, num_queries)
    targets = np.concatenate([rng.choice(num_items, count, replace=False) for count in counts])
    return lists, targets, np.r_[0, np.cumsum(counts)]


@pytest.mark.parametrize("cutoff", [1, 5, 10, 20])
def test_equal_to_ir_measures(cutoff):
    lists, targets, offsets = random_lists(cutoff)
    qrels = {str(q): {str(t): 1 for t in targets[offsets[q] : offsets[q + 1]]} for q in range(len(lists))}
    run = {str(q): {str(item): 1.0 - place / 100 for place, item in enumerate(row)} for q, row in enumerate(lists)}
    theirs = {R @ cutoff: recall, nDCG @ cutoff: ndcg, RR @ cutoff: mrr, Success @ cutoff: hit_rate}
    expected = {measure: np.zeros(len(lists)) for measure in theirs}
    for value in ir_measures.iter_calc(list(theirs), qrels, run):
        expected[value.measure][int(value.query_id)] = value.value
    ranks = find_ranks(lists, targets, offsets)
    for measure, ours in theirs.items():
        np.testing.assert_allclose(ours(ranks, offsets, cutoff), expected[measure], atol=1e-12, err_msg=str(measure))


def test_short_lists_and_missing_targets():
    lists = np.array([[3, -1, -1], [4, 5, 6]])
    ranks = find_ranks(lists, np.array([3, 9, 6]), np.array([0, 2, 3]))
    assert ranks.tolist() == [1, NOT_FOUND, 3]
    assert recall(ranks, np.array([0, 2, 3]), 3).tolist() == [0.5, 1.0]
    assert mrr(ranks, np.array([0, 2, 3]), 2).tolist() == [1.0, 0.0]


def test_metric_by_name_and_wrong_names():
    assert ranking_metric("hr@1", np.array([1]), np.array([0, 1])).tolist() == [1.0]
    for name in ("map@10", "ndcg", "ndcg@0", "ndcg@ten"):
        with pytest.raises(ValueError, match="expected one of"):
            ranking_metric(name, np.array([1]), np.array([0, 1]))


def test_a_query_without_targets_is_refused():
    with pytest.raises(ValueError, match="without a target"):
        recall(np.array([1]), np.array([0, 0, 1]), 10)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=60))
def test_auc_and_uauc_equal_scikit_learn_with_ties(rows):
    users, labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    per_user = {
        user: roc_auc_score(labels[users == user], scores[users == user])
        for user in np.unique(users)
        if len(set(labels[users == user])) == 2
    }
    who, values = user_aucs(users, labels, scores)
    assert who.tolist() == list(per_user)
    np.testing.assert_allclose(values, list(per_user.values()), atol=1e-12)
    if per_user:
        assert uauc(users, labels, scores) == pytest.approx(np.mean(list(per_user.values())))
        counts = [(users == user).sum() for user in per_user]
        expected = np.average(list(per_user.values()), weights=counts)
        assert uauc(users, labels, scores, weighted=True) == pytest.approx(expected)
    if len(set(labels)) == 2:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    else:
        assert np.isnan(auc(labels, scores))


def test_weighted_auc_equals_repeating_the_pairs():
    rng = np.random.default_rng(0)
    labels, scores, weights = rng.integers(0, 2, 50), rng.integers(0, 9, 50), rng.integers(0, 4, 50)
    repeated = auc(np.repeat(labels, weights), np.repeat(scores, weights))
    assert auc(labels, scores, weights) == pytest.approx(repeated)


def test_uauc_of_nobody_is_not_a_number():
    assert np.isnan(uauc(np.array([1, 1]), np.array([1, 1]), np.array([0.1, 0.2])))
