"""What the serving bench sends, and when."""

import importlib
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def serving(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    return importlib.import_module("benches.serving")


@pytest.mark.parametrize("kind", ["poisson", "bursts", "replay"])
def test_arrivals_are_in_order_and_as_many_a_second_as_asked_for(serving, kind):
    log = np.cumsum(np.random.default_rng(1).integers(0, 90, 4000)).tolist()
    times = serving.arrivals(kind, 50.0, log, np.random.default_rng(0))
    assert (np.diff(times) >= 0).all()
    assert len(times) / (times[-1] - times[0]) == pytest.approx(50, rel=0.1)


def test_bursts_bring_three_times_as_many_for_two_seconds_of_eight(serving):
    times = serving.arrivals("bursts", 50.0, [0] * 4000, np.random.default_rng(0))
    full = times[times < 8 * (times[-1] // 8)]
    share = (full % 8 < 2).mean()
    assert share == pytest.approx(0.75, abs=0.03)


def test_a_request_shows_what_was_known_before_its_second_and_nothing_later(serving, shop):
    from m6rec.data.store import Dataset

    found = serving.requests_of(Dataset.open(shop), None)
    assert len(found["requests"]) > 50
    times = [request["time"] for request in found["requests"]]
    assert times == sorted(times)
    assert all(event["time"] < request["time"] for request in found["requests"] for event in request["history"])
    assert max(len(request["history"]) for request in found["requests"]) <= serving.EVENTS


def test_ndcg_of_one_target(serving):
    assert serving.ndcg(["a", "b", "c"], "a") == 1
    assert serving.ndcg(["a", "b", "c"], "c") == pytest.approx(0.5)
    assert serving.ndcg(["a", "b", "c"], "d") == 0
