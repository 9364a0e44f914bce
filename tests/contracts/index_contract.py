"""What every index must keep. Inherit, name the index, and say whether it is exact."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from m6rec.errors import DataError, RunError
from m6rec.indexes import INDEXES
from m6rec.indexes.base import Index

DIM = 12


def vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Return ``[count, DIM]`` random vectors."""
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


class IndexContract:
    """The promises of the protocol."""

    name: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    least_recall: ClassVar[float] = 1.0
    """Share of the true neighbours that a search must find."""

    def make(self, dim: int = DIM) -> Index:
        cls = INDEXES.load(self.name)
        return cls(cls.Config(**self.settings), dim=dim)

    @pytest.fixture
    def filled(self) -> Index:
        index = self.make()
        index.add(np.arange(300) * 7, vectors(300))
        return index

    def check(self, index: Index, ids: NDArray[np.int64], rows: NDArray[np.float32], k: int = 10) -> None:
        """Hold a search against brute force over ``ids`` and ``rows``."""
        queries = vectors(40, seed=9)
        found = index.search(queries, k)
        products = queries @ rows.T
        expected = ids[np.argsort(-products, axis=1)[:, :k]]
        hits = sum(len(set(a) & set(b)) for a, b in zip(found.ids.tolist(), expected.tolist(), strict=True))
        assert hits >= self.least_recall * expected.size
        assert set(found.ids.ravel().tolist()) <= {*ids.tolist(), -1}
        place = {int(item): row for row, item in enumerate(ids)}
        for q in range(len(queries)):
            real = found.ids[q] >= 0
            own = products[q, [place[item] for item in found.ids[q][real].tolist()]]
            np.testing.assert_allclose(found.scores[q][real], own, rtol=1e-4, atol=1e-4)
            assert (np.diff(found.scores[q]) <= 1e-6).all()
        if self.least_recall == 1:
            np.testing.assert_array_equal(found.ids, expected)

    def test_protocol(self) -> None:
        index = self.make()
        assert isinstance(index, Index)
        assert len(index) == 0

    def test_search(self, filled: Index) -> None:
        assert len(filled) == 300
        self.check(filled, np.arange(300) * 7, vectors(300))

    def test_more_is_asked_than_there_is(self) -> None:
        index = self.make()
        empty = index.search(vectors(2), 3)
        assert (empty.ids == -1).all()
        assert (empty.scores == -np.inf).all()
        index.add([5], vectors(1))
        found = index.search(vectors(2), 3)
        assert found.ids.tolist() == [[5, -1, -1]] * 2
        assert np.isneginf(found.scores[:, 1:]).all()

    def test_add_replaces(self, filled: Index) -> None:
        filled.add(np.arange(50) * 7, vectors(50, seed=1))
        assert len(filled) == 300
        self.check(filled, np.arange(300) * 7, np.concatenate([vectors(50, seed=1), vectors(300)[50:]]))

    def test_remove_a_few_and_then_most(self, filled: Index) -> None:
        ids = np.arange(300) * 7
        filled.remove(ids[:30])
        assert len(filled) == 270
        self.check(filled, ids[30:], vectors(300)[30:])
        filled.remove(ids[30:250])
        self.check(filled, ids[250:], vectors(300)[250:])
        filled.add(ids[:30], vectors(30))
        assert len(filled) == 80

    def test_everything_can_go_and_come_back(self, filled: Index) -> None:
        filled.remove(np.arange(300) * 7)
        assert len(filled) == 0
        assert (filled.search(vectors(1), 2).ids == -1).all()
        filled.add([1, 2], vectors(2))
        assert set(filled.search(vectors(1), 2).ids[0].tolist()) == {1, 2}

    def test_save_and_load(self, filled: Index, tmp_path: Path) -> None:
        filled.remove([0, 7])
        filled.save(tmp_path / "index")
        again = self.make()
        again.add([3], vectors(1))
        again.load(tmp_path / "index")
        assert len(again) == 298
        self.check(again, np.arange(2, 300) * 7, vectors(300)[2:])
        filled.save(tmp_path / "index")  # over the old one

    def test_what_is_damaged_is_told_and_what_was_held_stays(self, filled: Index, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="holds no whole index"):
            filled.load(tmp_path / "nowhere")
        filled.save(tmp_path)
        with pytest.raises(RunError, match="expected version"):
            self.make(dim=5).load(tmp_path)
        data = (tmp_path / "vectors.safetensors").read_bytes()
        (tmp_path / "vectors.safetensors").write_bytes(data[:100])
        with pytest.raises(RunError, match="holds no whole index"):
            filled.load(tmp_path)
        assert len(filled) == 300

    def test_wrong_input_is_told_and_changes_nothing(self, filled: Index) -> None:
        for ids, rows in (
            ([1, 1], vectors(2)),
            ([-1], vectors(1)),
            ([1], vectors(2)),
            ([1], vectors(1)[:, :3]),
            ([1], np.full((1, DIM), np.nan, np.float32)),
        ):
            with pytest.raises(DataError, match="expected"):
                filled.add(ids, rows)
        with pytest.raises(DataError, match="not in the index"):
            filled.remove([0, 1])
        with pytest.raises(DataError, match="expected"):
            filled.search(vectors(2)[:, :3], 1)
        assert len(filled) == 300
        self.check(filled, np.arange(300) * 7, vectors(300))
