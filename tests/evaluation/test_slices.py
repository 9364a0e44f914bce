import numpy as np

from m6rec.data.histories import Queries
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.slices import slice_masks, slices


def test_items_and_lengths_are_split_without_rest(log, fixed):
    evaluation = evaluate(fixed(), log.queries("test"))
    masks = slice_masks(evaluation)
    by_item = [masks[f"items={name}"] for name in ("head", "tail", "new")]
    by_length = [mask for name, mask in masks.items() if name.startswith("history=") or name == "users=new"]
    for parts in (by_item, by_length):
        np.testing.assert_array_equal(np.sum(parts, axis=0), 1)


def test_head_items_are_the_popular_ones(log, fixed):
    evaluation = evaluate(fixed(), log.queries("test"))
    masks, counts = slice_masks(evaluation), evaluation.item_counts[evaluation.targets]
    assert counts[masks["items=head"]].min() >= counts[masks["items=tail"]].max()


def test_new_items_and_new_users_are_found(log, fixed):
    train = log.before("train")
    kept = train.select(train.items != 3)
    queries = Queries(kept, np.array([0, 1, 2], np.int32), np.arange(4), np.array([3, 5, 3], np.int32))
    empty = kept.select(kept.users != 1)
    evaluation = evaluate(fixed(), Queries(empty, queries.users, queries.target_offsets, queries.targets))
    masks = slice_masks(evaluation)
    assert masks["items=new"].tolist() == [True, False, True]
    assert masks["users=new"][1]
    assert masks["users=few"][1]


def test_a_slice_keeps_ranks_and_drops_queries_without_targets(log, fixed):
    evaluation = evaluate(fixed(), log.queries("test"))
    parts = slices(evaluation)
    assert sum(len(parts[name]) for name in ("items=head", "items=tail")) <= len(evaluation)
    keep = slice_masks(evaluation)["items=tail"]
    np.testing.assert_array_equal(parts["items=tail"].ranks, evaluation.ranks[keep])
    np.testing.assert_array_equal(parts["items=tail"].users, evaluation.users[keep])
    assert parts["items=tail"].means()["recall@10"] == (evaluation.ranks[keep] <= 10).mean()


def test_part_of_a_querys_targets(log, fixed):
    users = np.arange(4, dtype=np.int32)
    queries = Queries(log.before("valid"), users, np.arange(0, 9, 2), np.arange(20, 28, dtype=np.int32))
    evaluation = evaluate(fixed(), queries, mask_history=False)
    keep = np.array([1, 0, 1, 1, 0, 0, 0, 1], bool)
    part = evaluation.where(keep)
    assert part.users.tolist() == [0, 1, 3]
    assert part.offsets.tolist() == [0, 1, 3, 4]
    np.testing.assert_array_equal(part.targets, queries.targets[keep])
