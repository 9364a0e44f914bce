import sys

import numpy as np
import pytest

from m6rec.baselines.als import ALS, ALSConfig
from m6rec.errors import MissingExtraError
from tests.contracts.baseline_contract import BaselineContract, ring_log


class TestALS(BaselineContract):
    name, learns, settings = "als", "groups", {"factors": 8, "iterations": 8}

    @pytest.fixture(autouse=True)
    def needs_implicit(self):
        pytest.importorskip("implicit")


def test_a_query_is_solved_from_its_history_in_closed_form():
    pytest.importorskip("implicit")
    log = ring_log(80)
    config = ALSConfig(factors=6, regularization=0.1, alpha=4.0, iterations=5)
    baseline, queries = ALS(config), log.queries("test").take(np.arange(5))
    baseline.fit(log.before("train"))
    items = baseline._model.item_factors.astype(np.float64)
    for q, user in enumerate(queries.users):
        had = np.unique(queries.history.items[queries.history.of(user)])
        confidence = np.ones(log.num_items)
        confidence[had[had >= 0]] = config.alpha
        wanted = np.zeros(log.num_items)
        wanted[had[had >= 0]] = 1
        left = items.T * confidence @ items + config.regularization * np.eye(6)
        vector = np.linalg.solve(left, items.T @ (confidence * wanted))
        np.testing.assert_allclose(baseline.score(queries)[q], items @ vector, rtol=1e-2, atol=1e-3)


def test_without_implicit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit", None)
    with pytest.raises(MissingExtraError, match=r"m6rec\[bench\]"):
        ALS()
