import sys
from typing import ClassVar

import numpy as np
import pytest

from m6rec.errors import MissingExtraError
from m6rec.indexes.exact import ExactConfig, ExactIndex
from m6rec.indexes.faiss import FaissIndex
from tests.contracts.index_contract import DIM, IndexContract, vectors


class TestExact(IndexContract):
    name = "exact"


class TestExactInSmallSteps(IndexContract):
    name, settings = "exact", {"scores_at_once": 700}


class TestFaissFlat(IndexContract):
    name = "faiss"

    @pytest.fixture(autouse=True)
    def needs_faiss(self):
        pytest.importorskip("faiss")


class TestFaissGraph(TestFaissFlat):
    settings: ClassVar = {"kind": "hnsw", "links": 16}
    least_recall = 0.95


class TestMultiVector(IndexContract):
    name = "multivector"


def test_one_kind_reads_what_another_wrote(tmp_path):
    pytest.importorskip("faiss")
    flat, exact = FaissIndex(dim=DIM), ExactIndex(dim=DIM)
    flat.add(np.arange(100)[::-1].copy(), vectors(100))
    flat.save(tmp_path)
    exact.load(tmp_path)
    ours, theirs = exact.search(vectors(20, seed=3), 7), flat.search(vectors(20, seed=3), 7)
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5)


def test_equal_scores_come_in_order_of_id():
    index = ExactIndex(ExactConfig(), dim=DIM)
    index.add([9, 4, 6, 2], np.repeat(vectors(1), 4, axis=0))
    assert index.search(vectors(1), 4).ids.tolist() == [[2, 4, 6, 9]]


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"m6rec\[index\]"):
        FaissIndex(dim=DIM)
