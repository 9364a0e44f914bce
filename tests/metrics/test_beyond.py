import numpy as np
import pytest

from m6rec.metrics.beyond import coverage, novelty


def test_coverage_counts_items_once_and_skips_padding():
    assert coverage(np.array([[0, 1, -1], [1, 0, -1]]), 8) == 0.25


def test_rarer_items_are_more_novel():
    counts = np.array([100, 10, 0])
    values = [novelty(np.array([[item]]), counts) for item in range(3)]
    assert values == sorted(values)
    assert values[2] == pytest.approx(np.log2(113))


def test_empty_lists():
    assert coverage(np.full((2, 3), -1), 4) == 0
    assert np.isnan(novelty(np.full((2, 3), -1), np.ones(4)))
