import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from m6rec.data.histories import Judgements
from m6rec.errors import DataError, MissingExtraError
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.pairs import evaluate_pairs
from m6rec.evaluation.report import Report


@pytest.fixture
def report(log, fixed):
    queries = log.queries("test")
    rows = [evaluate(fixed(seed, name=name), queries) for seed, name in enumerate(("ours", "other"))]
    oracle = fixed(name="oracle")
    oracle.scores[queries.users, queries.targets] = 5000
    return Report(rows, "A small log", ours="ours", ceiling=evaluate(oracle, queries), draws=50)


def test_the_table_says_figures_and_protocol(report):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    for word in ("ours", "other", "oracle", "1.0000", "ndcg@10", "full catalogue", "seeded random"):
        assert word in text
    assert f"{report.rows[0].means()['ndcg@10']:.4f} ±" in text


def test_the_dict_is_json_and_complete(report):
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["protocol"]["ties"] == "seeded random"
    assert set(found["rows"]) == {"ours", "other", "oracle"}
    ours = found["rows"]["ours"]
    assert ours["metrics"]["ndcg@10"] == report.rows[0].means()["ndcg@10"]
    assert {"coverage@10", "novelty@10"} <= set(ours["metrics"])
    assert ours["slices"]["items=tail"]["queries"] > 0
    (comparison,) = found["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("ours", "other")
    assert comparison["difference"]["low"] <= comparison["difference"]["mean"] <= comparison["difference"]["high"]


def test_the_picture_is_a_png(report, tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"m6rec\[bench\]"):
        report.plot(tmp_path / "report.png")


def test_pairs_with_one_class_only(log):
    class Half:
        name = "half"

        def score_pairs(self, pairs):
            return np.full(len(pairs), 0.5, np.float32)

    users = np.zeros(4, np.int32)
    pairs = Judgements(log.before("test"), users, users, np.ones(4, np.float32), np.zeros(4, np.int64))
    report = Report([evaluate_pairs(Half(), pairs)], draws=5)
    found = report.to_dict()["rows"]["half"]["metrics"]
    assert found["auc"] is None
    assert found["brier"] == 0.25
    assert report.table().row_count == 1


def test_rows_must_share_a_protocol_and_have_names(report, log, fixed):
    ours, _ = report.rows
    with pytest.raises(DataError, match="every name once"):
        Report([ours, ours])
    with pytest.raises(DataError, match="expected one of"):
        Report([ours], ours="mine")
    with pytest.raises(DataError, match="different metrics"):
        Report([ours, evaluate(fixed(name="short"), log.queries("test"), cutoffs=(3,))])
