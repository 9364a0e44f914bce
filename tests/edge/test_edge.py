"""An exported run answers as the run does, without torch; what is damaged or of another version is refused."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import m6rec
from m6rec.edge.engines import ENGINES
from m6rec.errors import ConfigError, MissingExtraError, RunError, UnknownNameError

pytest.importorskip("onnxscript")
HISTORY, CANDIDATES = "red shirt; blue lamp", ["green shoes", "soft book", "warm phone", "winter chair", "red lamp"]


@pytest.fixture(scope="module")
def exits_run(ranking_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the little ranking run with exits at every layer."""
    from m6rec.workflows.compression import compress_run

    out = tmp_path_factory.mktemp("runs") / "exits"
    card = compress_run(ranking_run, "early-exit", [f"out={out}", "training.max_steps=2", "training.head_lr=0.1"])
    assert [row["depth"] for row in card["depths"]] == [1, 2, 3]
    return out


@pytest.fixture(scope="module")
def edge(exits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return it exported in float32, so that its answers can be held against the run's."""
    from m6rec.workflows.compression import compress_run

    out = tmp_path_factory.mktemp("edge") / "fp32"
    card = compress_run(exits_run, "quantize", [f"out={out}", "precision=fp32"])
    assert card["parity"] < 1e-4
    return out


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_it_answers_as_the_run_does_at_every_depth(edge, exits_run, depth, engine):
    from m6rec.compressors.exit_config import ExitConfig

    run = m6rec.load(exits_run)
    run.run.backbone.set(ExitConfig(depth=depth))
    wanted = {item.id: item.score for item in run.rank(HISTORY, CANDIDATES)}
    found = {item.id: item.score for item in m6rec.load(edge, engine=engine).rank(HISTORY, CANDIDATES, depth=depth)}
    assert found == pytest.approx(wanted, abs=1e-5)


def test_any_number_of_candidates_and_any_history(edge, engine):
    recommender = m6rec.load(edge, engine=engine)
    assert recommender.rank(HISTORY, []) == []
    alone = recommender.rank("", CANDIDATES[:1])
    assert len(alone) == 1
    many = recommender.rank([*HISTORY.split("; ")] * 40, CANDIDATES * 5)  # more than one tree holds
    assert len(many) == 25
    stranger = recommender.rank(HISTORY, [{"title": "a lamp nobody knows"}])
    assert 0 <= stranger[0].score <= 1


def test_no_torch_is_asked_for(edge, engine):
    program = f"""
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "datasets", "accelerate", "peft"):
            raise ImportError(f"{{name}} is forbidden here")
sys.meta_path.insert(0, Forbidden())
import m6rec
print([item.id for item in m6rec.load({str(edge)!r}, engine={engine!r}).rank({HISTORY!r}, {CANDIDATES!r})])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([item.id for item in m6rec.load(edge).rank(HISTORY, CANDIDATES)])


@pytest.mark.parametrize("precision", ["int8", "int8-static"])
def test_eight_bits_are_smaller_and_nearly_the_same(exits_run, edge, tmp_path, precision):
    from m6rec.workflows.compression import compress_run

    card = compress_run(exits_run, "quantize", [f"out={tmp_path / 'out'}", f"precision={precision}", "calibration=4"])
    assert card["graph_megabytes"] < card["float32_megabytes"]  # not a quarter: a tiny graph is mostly not weights
    wanted = {item.id: item.score for item in m6rec.load(edge).rank(HISTORY, CANDIDATES)}
    # OpenVINO rounds more than the file asks for where activations have fixed ranges.
    for engine in ENGINES if precision == "int8" and importlib.util.find_spec("openvino") else ["onnxruntime"]:
        found = {item.id: item.score for item in m6rec.load(tmp_path / "out", engine=engine).rank(HISTORY, CANDIDATES)}
        assert found == pytest.approx(wanted, abs=0.1)
        assert found != wanted


def test_an_engine_that_is_not_there(edge, monkeypatch):
    with pytest.raises(UnknownNameError, match="did you mean openvino"):
        m6rec.load(edge, engine="openvin")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"m6rec\[openvino\]"):
        m6rec.load(edge, engine="openvino")


@pytest.mark.parametrize(("budget_ms", "depth"), [(1e9, 3), (0, 1)])
def test_a_budget_chooses_the_depth(edge, budget_ms, depth):
    phone = m6rec.load(edge)
    costs = phone.fit(budget_ms, HISTORY, CANDIDATES, repeats=1)
    assert phone.depth == depth
    assert list(costs) == [1, 2, 3]


def test_a_depth_that_the_graph_has_not(edge):
    with pytest.raises(ConfigError, match="depth: got 4, expected one of 1, 2, 3"):
        m6rec.load(edge).rank(HISTORY, CANDIDATES, depth=4)


def test_another_version(edge, tmp_path):
    folder = shutil.copytree(edge, tmp_path / "edge")
    card = json.loads((folder / "edge.json").read_text())
    (folder / "edge.json").write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(RunError, match="edge format 99, this m6rec reads 1"):
        m6rec.load(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "items.jsonl", "edge.json"])
@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_a_damaged_folder(edge, tmp_path, name, damage, engine):
    folder = shutil.copytree(edge, tmp_path / "edge")
    if damage == "garbage":
        (folder / name).write_text("{", encoding="utf-8")
    else:
        (folder / name).unlink()
    with pytest.raises(RunError):
        m6rec.load(folder, engine=engine)


def test_only_ranking_is_exported(retrieval_run, tmp_path):
    from m6rec.workflows.compression import compress_run

    with pytest.raises(RunError, match="only ranking runs are exported"):
        compress_run(retrieval_run, "quantize", [f"out={tmp_path / 'out'}"])


def test_a_graph_that_answers_otherwise_is_refused(exits_run, tmp_path):
    from m6rec.assemble import open_experiment
    from m6rec.compressors.export import RankingGraph, check_parity, export_graph, whole_part
    from m6rec.compressors.quantize import _examples
    from m6rec.edge.engines.base import EngineConfig
    from m6rec.edge.engines.onnxruntime import OnnxRuntimeEngine
    from m6rec.edge.folder import GRAPH_FILE
    from m6rec.edge.graphs import WholeGraph

    experiment = open_experiment(exits_run)
    task, backbone, examples = experiment.task, experiment.backbone, _examples(experiment.task, 2)
    export_graph(whole_part(RankingGraph(backbone, task), examples), backbone, tmp_path / GRAPH_FILE)
    task.norm.bias.data.add_(np.float32(0.5))
    graphs = WholeGraph(OnnxRuntimeEngine(tmp_path / GRAPH_FILE, EngineConfig()))
    with pytest.raises(RunError, match="differs from the model"):
        check_parity(task, backbone, graphs, examples)
