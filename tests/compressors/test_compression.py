"""A run in, a run out: every method's result opens, answers, and says what it costs."""

import json
import shutil

import pytest

import m6rec
from m6rec.backbones.resolve import resolve_backbone
from m6rec.compressors import COMPRESSORS
from m6rec.compressors.base import Compressor
from m6rec.errors import ConfigError, M6RecError, UnknownNameError
from m6rec.hub.staging import stage
from m6rec.workflows.compression import compress_run, merged

QUICK = ["training.max_steps=2", "training.batch_size=2"]
METHODS = {
    "early-exit": ["policy=patience", "threshold=0.5", *QUICK],
    "prune": ["sparsity=0.5", "ramp=2", *QUICK],
    "share": ["groups=1", "embedding_rank=8", *QUICK],
    "structured": ["heads=0.25", "units=0.5", "layers=1", "batches=2", *QUICK],
}


@pytest.mark.parametrize("method", METHODS)
def test_the_result_answers_and_says_what_it_costs(method, ranking_run, tmp_path):
    card = compress_run(ranking_run, method, [f"out={tmp_path / 'out'}", *METHODS[method]])
    assert card == json.loads((tmp_path / "out" / "compression.json").read_text())
    found = m6rec.load(tmp_path / "out").rank("red shirt", ["green shoes", "soft book"])
    assert all(0 <= item.score <= 1 for item in found)
    if method == "early-exit":
        assert [row["depth"] for row in card["depths"]] == [1, 2, 3]
        stage(tmp_path / "out", tmp_path / "staged", base="me/tiny")
        assert (tmp_path / "staged" / "exits" / "exits.safetensors").is_file()
        return
    kept = "nonzero" if method == "prune" else "parameters"
    assert card["after"][kept] < card["before"][kept]
    assert card["quality"]["auc"] > 0
    assert resolve_backbone(tmp_path / "out" / "compressed").num_layers == (2 if method == "structured" else 3)


@pytest.mark.parametrize("name", list(COMPRESSORS))
def test_every_entry_is_a_compressor(name):
    kind = COMPRESSORS.load(name)
    assert isinstance(kind(kind.Config()), Compressor)


@pytest.fixture(scope="module")
def edge(ranking_run, tmp_path_factory):
    """Return the folder and the words of the whole recipe on the little run."""
    pytest.importorskip("onnxscript")
    out = tmp_path_factory.mktemp("edge") / "out"
    words = [f"out={out}", "share.embedding_rank=8", "share.groups=2", "prune.ramp=2", *QUICK]
    compress_run(ranking_run, "edge", words)
    return out, words


def test_the_whole_recipe_in_one_command(edge, ranking_run):
    out, words = edge
    card = compress_run(ranking_run, "edge", words)
    assert [part["method"] for part in card["stages"]] == ["share", "prune"]
    assert [row["depth"] for row in card["depths"]] == [1, 2, 3]
    assert all(row["ms"] > 0 and 0 <= row["auc"] <= 1 for row in card["depths"])
    assert 0 < card["megabytes"] < 1
    assert 0 <= m6rec.load(out).rank("red shirt", ["green shoes"])[0].score <= 1


def test_what_is_done_is_not_done_again(edge, ranking_run):
    out, words = edge
    stages = sorted(path.name for path in (out / "stages").iterdir())
    assert stages == ["1-share", "2-prune"]
    trained = (out / "stages" / "1-share" / "run.json").stat().st_mtime_ns
    (out / "compression.json").unlink()
    (out / "model.onnx").unlink()
    compress_run(ranking_run, "edge", words)
    assert (out / "model.onnx").is_file()
    assert (out / "stages" / "1-share" / "run.json").stat().st_mtime_ns == trained


def test_a_setting_of_no_stage(ranking_run, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean share"):
        compress_run(ranking_run, "edge", [f"out={tmp_path}", "shore.groups=2"])


BAD = [
    ("prunee", [], UnknownNameError, "did you mean prune"),
    ("prune", ["sparsity=1.5"], ConfigError, "sparsity: got 1.5"),
    ("prune", ["sparsty=0.5"], ConfigError, "did you mean sparsity"),
    ("early-exit", ["depth=9", *QUICK], ConfigError, "depth: got 9, expected at most 3"),
    ("share", ["groups=7"], ConfigError, "groups: got 7, expected at most 3"),
]


@pytest.mark.parametrize(("method", "words", "error", "message"), BAD)
def test_bad_settings(method, words, error, message, ranking_run, tmp_path):
    with pytest.raises(error, match=message):
        compress_run(ranking_run, method, [f"out={tmp_path / 'out'}", *words])


def test_no_out_or_the_run_itself(ranking_run):
    with pytest.raises(ConfigError, match="missing out=FOLDER"):
        compress_run(ranking_run, "prune", [])
    with pytest.raises(ConfigError, match="the run itself"):
        compress_run(ranking_run, "prune", [f"out={ranking_run}"])


@pytest.mark.parametrize("missing", ["adapter", "task", "run.json"])
def test_a_run_without_weights(missing, ranking_run, tmp_path):
    folder = shutil.copytree(ranking_run, tmp_path / "run")
    shutil.rmtree(folder / missing) if (folder / missing).is_dir() else (folder / missing).unlink()
    with pytest.raises(M6RecError):
        compress_run(folder, "share", [f"out={tmp_path / 'out'}"])


def test_exits_for_a_run_that_never_runs_its_backbone(retrieval_run, tmp_path):
    with pytest.raises(ConfigError, match="reads cached vectors"):
        compress_run(retrieval_run, "early-exit", [f"out={tmp_path / 'out'}", *QUICK])


def test_settings_over_settings():
    base = {"tuner": {"name": "lora", "r": 8}, "training": {"lr": 1, "max_steps": 3}}
    assert merged(base, {"tuner": {"r": 4}, "training": {"lr": 2}}) == {
        "tuner": {"name": "lora", "r": 4},
        "training": {"lr": 2, "max_steps": 3},
    }
    assert merged(base, {"tuner": {"name": "full"}})["tuner"] == {"name": "full"}
    assert base["tuner"]["r"] == 8
