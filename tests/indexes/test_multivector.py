import numpy as np
import pytest

from m6rec.errors import DataError
from m6rec.indexes.multivector import MultiVectorConfig, MultiVectorIndex

DIM = 8


def cubes(count: int, most: int, seed: int) -> np.ndarray:
    """Return ``[count, most, DIM]`` unit vectors, one to ``most`` of each, zeros behind."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, most, DIM)).astype(np.float32)
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    return found * (np.arange(most) < rng.integers(1, most + 1, count)[:, None])[..., None]


def by_hand(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    scores = np.zeros((len(queries), len(items)), np.float32)
    for q, query in enumerate(queries):
        for i, item in enumerate(items):
            kept = item[item.any(-1)]
            scores[q, i] = sum((kept @ token).max() for token in query if token.any())
    return scores


@pytest.fixture
def filled() -> MultiVectorIndex:
    index = MultiVectorIndex(MultiVectorConfig(near=400), dim=DIM)
    index.add(np.arange(60) * 3, cubes(60, 5, 0))
    return index


def test_the_order_is_that_of_maxsim(filled: MultiVectorIndex) -> None:
    queries, scores = cubes(12, 4, 1), by_hand(cubes(12, 4, 1), cubes(60, 5, 0))
    found = filled.search(queries, 7)
    order = np.argsort(-scores, axis=1)[:, :7]
    np.testing.assert_array_equal(found.ids, order * 3)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1), rtol=1e-5)


def test_few_near_vectors_find_nearly_all_of_the_best(filled: MultiVectorIndex) -> None:
    few = MultiVectorIndex(MultiVectorConfig(near=12), dim=DIM)
    few.add(np.arange(60) * 3, cubes(60, 5, 0))
    whole, part = (index.search(cubes(40, 4, 2), 5).ids for index in (filled, few))
    assert np.mean([len(set(a) & set(b)) for a, b in zip(whole, part, strict=True)]) >= 4.5


def test_items_change_with_all_their_vectors(filled: MultiVectorIndex, tmp_path) -> None:
    items = cubes(60, 5, 0)
    items[:20] = cubes(20, 5, 3)
    filled.add(np.arange(20) * 3, items[:20])
    filled.remove([9, 12])
    assert len(filled) == 58
    stay = np.setdiff1d(np.arange(60), [3, 4])
    scores = by_hand(cubes(10, 4, 4), items[stay])
    expected = stay[np.argsort(-scores, axis=1)[:, :6]] * 3
    np.testing.assert_array_equal(filled.search(cubes(10, 4, 4), 6).ids, expected)
    filled.save(tmp_path)
    again = MultiVectorIndex(filled.config, dim=DIM)
    again.load(tmp_path)
    np.testing.assert_array_equal(again.search(cubes(10, 4, 4), 6).ids, expected)
    again.add([1], items[:1])
    assert len(again) == 59


def test_an_approximate_inner_index() -> None:
    pytest.importorskip("faiss")
    index = MultiVectorIndex(MultiVectorConfig(inner="faiss", near=400), dim=DIM)
    index.add(np.arange(60), cubes(60, 5, 0))
    scores = by_hand(cubes(8, 4, 1), cubes(60, 5, 0))
    np.testing.assert_array_equal(index.search(cubes(8, 4, 1), 5).ids, np.argsort(-scores, axis=1)[:, :5])


def test_an_item_without_a_vector_is_refused(filled: MultiVectorIndex) -> None:
    with pytest.raises(DataError, match="item 5 without a vector"):
        filled.add([4, 5], np.stack([np.ones((2, DIM), np.float32), np.zeros((2, DIM), np.float32)]))
    with pytest.raises(DataError, match="expected"):
        filled.add([4], np.ones((1, 2, 2, DIM), np.float32))
    assert len(filled) == 60
