"""Shards searched and merged are the unsharded index."""

import itertools

import numpy as np
import pytest

from m6rec.errors import DataError, RunError
from m6rec.indexes.exact import ExactIndex
from m6rec.indexes.faiss import FaissIndex
from m6rec.indexes.shards import Shards


def vectors(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 12)).astype(np.float32)


def parts(ids, rows, sizes):
    starts = np.cumsum([0, *sizes])
    return [(ids[a:b], rows[a:b]) for a, b in itertools.pairwise(starts)]


@pytest.mark.parametrize(("name", "whole"), [("exact", ExactIndex), ("faiss", FaissIndex)])
def test_shards_equal_the_whole(tmp_path, name, whole):
    if name == "faiss":
        pytest.importorskip("faiss")
    ids, rows, queries = np.random.default_rng(1).permutation(500)[:200], vectors(200), vectors(30, 1)
    index = whole(dim=12)
    index.add(ids, rows)
    shards = Shards.write(tmp_path, iter(parts(ids, rows, [7, 150, 1, 42])), 12, name)
    expected, found = index.search(queries, 20), Shards(tmp_path, 12, name).search(queries, 20)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    # A shard with fewer vectors than are asked for fills up with none; they come last.
    assert (shards.search(queries, 250).ids[:, 200:] == -1).all()


def test_former_shards_are_gone(tmp_path):
    ids, rows = np.arange(6), vectors(6)
    for sizes in ([2, 2, 2], [6]):
        shards = Shards.write(tmp_path, parts(ids, rows, sizes), 12, "exact")
    assert sorted(shards.search(rows[:1], 12).ids[0][:6].tolist()) == ids.tolist()
    assert (shards.search(rows[:1], 12).ids[0][6:] == -1).all()


def test_equal_scores_come_by_id(tmp_path):
    same = np.ones((4, 3), np.float32)
    shards = Shards.write(tmp_path, [(np.array([7, 2]), same[:2]), (np.array([5, 1]), same[2:])], 3, "exact")
    assert shards.search(same[:1], 4).ids.tolist() == [[1, 2, 5, 7]]


def test_mistakes(tmp_path):
    with pytest.raises(DataError, match="disjoint"):
        Shards.write(tmp_path / "a", [(np.array([1]), vectors(1)), (np.array([1]), vectors(1))], 12, "exact")
    with pytest.raises(RunError, match="no shards"):
        Shards(tmp_path / "nothing", 12, "exact").search(vectors(1), 3)
    Shards.write(tmp_path / "b", [(np.array([1]), vectors(1))], 12, "exact")
    (tmp_path / "b" / "shard-00000" / "index.json").write_text("{")
    with pytest.raises(RunError, match="whole index"):
        Shards(tmp_path / "b", 12, "exact").search(vectors(1), 3)
