"""A student and its teachers, whole: every source of labels gives the same weights, and no death changes any."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from m6rec.assemble import build, open_run, train_run
from m6rec.config import plain
from m6rec.distillation.executors.local import LocalConfig, LocalExecutor
from m6rec.distillation.lessons import ScoreLesson
from m6rec.errors import ConfigError, DistillationError
from m6rec.recipe import read_recipe
from m6rec.workflows import distilling
from m6rec.workflows.compression import compress_run
from m6rec.workflows.distilling import open_teacher, taught, train, version_of
from tests.little_shop import SMALL

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def student(shop, tiny_folder, ranking_run, tmp_path):
    """Return ``recipe(name, *words)``: a student of the little shop's ranking run, in exact arithmetic."""

    def recipe(name, *words):
        places = [f"data={shop}", f"out={tmp_path / name}", f"backbone.name={tiny_folder}", "backbone.layers=1"]
        own = [f"distillation.teacher={ranking_run}", "training.precision=fp32", "training.ema=null"]
        last = ["training.evaluate_every=null", "training.evaluate_first=false", "training.select_on=null"]
        return read_recipe("distillation", [*places, *SMALL["ranking"], *own, *last, "training.log_every=1", *words])

    return recipe


def weights(run):
    opened = open_run(run)
    return {**opened.task.state_dict(), **opened.backbone.state_dict()}


def assert_equal_weights(run, other):
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


class InThisProcess:
    """An executor that is no process: what a pool and a wire make of a teacher, without the seconds of a start."""

    Config = LocalConfig
    opening = threading.Lock()  # the libraries load models, and hide warnings, for a whole process

    def __init__(self, open_teacher, config=None):
        self._open = open_teacher

    def open(self):
        with self.opening:
            self._teacher = self._open()
        return self._teacher.card

    def label(self, request):
        return self._teacher.answer(request)

    def close(self):
        pass


@pytest.fixture
def near(monkeypatch):
    """Let ``local`` teachers live in this process."""
    monkeypatch.setattr("m6rec.distillation.executors.local.LocalExecutor", InThisProcess)


class TestEverySourceTeachesTheSame:
    def test_elastic_online_and_offline(self, student, near, tmp_path):
        for source in ("elastic", "online", "offline"):
            _, result = train(student(source, f"distillation.source={source}"))
            assert result.steps == 3
            losses = [record["figures"]["taught"] for record in result.history if "loss" in record]
            assert all(loss > 0 for loss in losses)
        assert_equal_weights(tmp_path / "elastic", tmp_path / "online")
        # Kept labels were made in other batches: the same numbers up to rounding.
        ours, theirs = weights(tmp_path / "online"), weights(tmp_path / "offline")
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)

    def test_alpha_zero_is_a_run_without_a_teacher(self, student, tmp_path):
        train(student("taught", "distillation.source=online", "distillation.alpha=0"))
        train_run(replace(student("alone"), distillation=None))
        assert_equal_weights(tmp_path / "taught", tmp_path / "alone")

    def test_two_teachers_of_the_same_weights_are_one(self, student, ranking_run, tmp_path):
        train(student("one", "distillation.source=online"))
        both = f"distillation.teacher=[{ranking_run}, {ranking_run}]"
        train(student("two", "distillation.source=online", both))
        assert_equal_weights(tmp_path / "one", tmp_path / "two")


class TestResuming:
    @pytest.mark.parametrize("ordered", ["true", "false"])
    def test_it_goes_on_as_if_nothing_had_happened(self, student, near, tmp_path, monkeypatch, ordered):
        words = ["training.save_every=1", "training.max_steps=4", f"distillation.stream.ordered={ordered}"]
        train(student("whole", *words))
        recipe = student("cut", *words)
        with monkeypatch.context() as patched:
            patched.setattr(distilling.DistilTask, "loss", _fails_in_step(3, distilling.DistilTask.loss))
            with pytest.raises(KeyboardInterrupt):
                train(recipe)
        _, result = train(recipe, resume=True)
        assert result.steps == 4
        assert_equal_weights(tmp_path / "whole", tmp_path / "cut")

    @pytest.mark.slow
    def test_real_processes_that_are_killed_change_nothing(self, student, tmp_path, monkeypatch):
        words = ["distillation.teachers=[local, local]", "training.save_every=1", "training.max_steps=12"]
        train(student("whole", "distillation.source=online", *words[1:]))
        seen = []
        monkeypatch.setattr(LocalExecutor, "label", _kills_some(seen, LocalExecutor.label))
        train(student("killed", *words))
        assert len(seen) > 3
        assert_equal_weights(tmp_path / "whole", tmp_path / "killed")


def _fails_in_step(step, loss):
    calls = []

    def failing(self, backbone, batch):
        calls.append(batch)
        if len(calls) == step:
            raise KeyboardInterrupt
        return loss(self, backbone, batch)

    return failing


def _kills_some(seen, label):
    """Ask teachers, and kill the second and the fifth that is asked, by its own number, at its work."""

    def asked(self, request):
        seen.append(self.pid)
        if len(seen) in (2, 5):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        return label(self, request)

    return asked


def test_a_teacher_may_see_what_its_student_does_not(student):
    experiment, result = train(student("run", "task.numbers=false", "distillation.source=online"))
    assert experiment.task.numbers is None
    assert result.steps > 0


class TestBadTeachers:
    def test_of_another_task(self, student, retrieval_run):
        with pytest.raises(DistillationError, match="a run of task 'retrieval', expected one of 'ranking'"):
            train(student("run", f"distillation.teacher={retrieval_run}"))

    def test_of_another_tokenizer(self, student, shop, tiny_folder, tmp_path):
        words = [f"data={shop}", f"backbone.name={tiny_folder}", "backbone.vocabulary=used", *SMALL["ranking"]]
        train_run(read_recipe("ranking", [f"out={tmp_path / 'other'}", *words]))
        with pytest.raises(DistillationError, match="another tokenizer"):
            train(student("run", f"distillation.teacher={tmp_path / 'other'}", "distillation.source=online"))

    def test_of_another_label_space(self, student, monkeypatch):
        monkeypatch.setattr(ScoreLesson, "space", lambda self, task, backbone: f"numbers {task.config.numbers}")
        with pytest.raises(DistillationError, match=r"another space \(got .*numbers True.*, expected .*numbers False"):
            train(student("run", "task.numbers=false", "distillation.source=online"))

    def test_none_is_told_at_once(self, student):
        with pytest.raises(ConfigError, match=r"distillation\.teacher=RUN"):
            student("run", "distillation.teacher=null")

    def test_nobody_comes_up(self, student, near, monkeypatch):
        def broken(*given):
            raise DistillationError("no memory")

        monkeypatch.setattr(distilling, "open_teacher", broken)
        with pytest.raises(DistillationError, match=r"no teacher for .* s \(teacher local#1.1: no memory\)"):
            train(student("run", "distillation.stream.patience_seconds=0.2"))


def test_a_teacher_that_was_trained_again_is_not_gone_on_with(student, monkeypatch):
    recipe = student("run", "distillation.source=online")
    train(recipe)
    monkeypatch.setattr(distilling, "version_of", lambda folder: "another")
    with pytest.raises(DistillationError, match=r"was taught by versions .*mix_versions=true"):
        train(recipe, resume=True)


def test_a_version_is_of_the_weights(ranking_run, retrieval_run, tmp_path):
    assert version_of(ranking_run) == version_of(ranking_run) != version_of(retrieval_run)
    assert open_teacher(ranking_run).card.version == version_of(ranking_run)


def test_labels_cut_short_are_told(student, tmp_path):
    recipe = student("run", "distillation.source=offline")
    with ExitStack() as stack:
        taught(build(recipe), stack)
    part = next((tmp_path / "run" / "labels").rglob("part-*"))
    part.write_bytes(part.read_bytes()[:-7])
    with pytest.raises(DistillationError, match="cut short or damaged"):
        train(recipe)


def test_what_cannot_be_mixed_is_told(student, shop, tiny_folder, tmp_path, ranking_run):
    with pytest.raises(ConfigError, match="several teachers, expected true"):
        student("run", "distillation.teacher=[a, b]", "distillation.stream.ordered=false")
    words = [f"data={shop}", f"out={tmp_path / 'few'}", f"backbone.name={tiny_folder}", *SMALL["fewshot"]]
    with pytest.raises(ConfigError, match="expected one of generation, ranking, retrieval"):
        train(read_recipe("fewshot", [*words, f"distillation.teacher={ranking_run}"]))
    with pytest.raises(ConfigError, match="expected source=online"):
        student("run", "distillation.relations=1")
    with pytest.raises(ConfigError, match="expected logits or listwise or margin"):
        train(student("run", "distillation.taught=vectors"))


@pytest.mark.parametrize("taught", ["listwise", "margin"])
def test_lists_are_learnt(student, taught):
    _, result = train(student("run", "distillation.source=online", f"distillation.taught={taught}"))
    assert all(record["figures"]["taught"] > 0 for record in result.history if "loss" in record)


def test_relations_are_learnt_beside(student):
    words = ["distillation.source=online", "distillation.relations=1", "backbone.layers=3"]
    _, result = train(student("run", *words))
    assert result.history[0]["figures"]["relations"] > 0


def test_the_roster_lies_in_the_run(student, near, tmp_path):
    train(student("run", "distillation.teachers=[local, local]"))
    assert Path(tmp_path / "run" / "teachers.txt").read_text() == "local\nlocal\n"


class TestOtherTasks:
    def test_retrieval_learns_vectors(self, shop, tiny_folder, retrieval_run, tmp_path, near):
        words = [f"data={shop}", f"backbone.name={tiny_folder}", *SMALL["retrieval"], "training.max_steps=2"]
        words += [f"distillation={{teacher: {retrieval_run}, source: elastic}}", "training.log_every=1"]
        _, result = train(read_recipe("retrieval", [f"out={tmp_path / 'run'}", *words]))
        assert result.history[0]["figures"]["taught"] > 0

    def test_generation_learns_tokens(self, shop, tiny_folder, tmp_path, near):
        words = [f"data={shop}", f"backbone.name={tiny_folder}", *SMALL["title"], "training.log_every=1"]
        train_run(read_recipe("title", [f"out={tmp_path / 'teacher'}", *words]))
        more = [f"distillation={{teacher: {tmp_path / 'teacher'}, source: elastic, top_k: 8}}", "seed=1"]
        _, result = train(read_recipe("title", [f"out={tmp_path / 'run'}", *words, *more]))
        assert result.history[0]["figures"]["taught"] > 0


def test_a_compressor_is_taught_by_the_run_it_compresses(ranking_run, near, tmp_path):
    words = [f"out={tmp_path / 'shared'}", "groups=1", "distil=false", "training.max_steps=2", "training.log_every=1"]
    compress_run(ranking_run, "share", [*words, "distillation.source=elastic"])
    lines = [json.loads(line) for line in (tmp_path / "shared" / "train_log.jsonl").read_text().splitlines()]
    assert all(line["figures"]["taught"] > 0 for line in lines if "loss" in line)
    told = yaml.safe_load((tmp_path / "shared" / "recipe.yaml").read_text())
    assert told["distillation"]["teacher"] == str(ranking_run)


def test_every_exit_is_taught(student, near):
    _, result = train(student("run", "backbone.layers=3", "exits={}"))
    assert {"loss_1", "loss_2", "taught"} <= set(result.history[0]["figures"])


@pytest.mark.slow
class TestScripts:
    """The student as a shell runs it: killed and gone on with, in two processes, with a teacher served elsewhere."""

    @pytest.fixture
    def run(self, student, tmp_path):
        def run(name, *words, launch=()):
            recipe = tmp_path / f"{name}.yaml"
            recipe.write_text(yaml.safe_dump(plain(student(name, *words))))
            command = [sys.executable, *launch, str(SCRIPTS / "train.py"), str(recipe), "--resume"]
            return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

        return run

    def finish(self, process):
        said = process.communicate(timeout=250)[1]
        assert process.returncode == 0, said[-3000:]

    def test_a_killed_student_goes_on_as_if_nothing_had_happened(self, run, tmp_path):
        words = ["training.save_every=1", "training.max_steps=6"]
        self.finish(run("alone", *words))
        process, log = run("killed", *words), tmp_path / "killed" / "train_log.jsonl"
        while process.poll() is None and not (log.is_file() and log.read_text().count("\n") > 1):
            time.sleep(0.01)
        process.kill()
        process.communicate()
        self.finish(run("killed", *words))
        assert_equal_weights(tmp_path / "alone", tmp_path / "killed")

    def test_two_processes_share_the_teachers(self, run, tmp_path):
        launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
        self.finish(run("two", "distillation.teachers=[local, local]", launch=launch))
        assert sorted(path.name for path in (tmp_path / "two").glob("*.txt")) == [
            "teachers-0-1.txt",
            "teachers.txt",
        ]

    def test_a_served_teacher_teaches(self, run, ranking_run, tmp_path):
        command = [sys.executable, str(SCRIPTS / "serve_teacher.py"), str(ranking_run), "--port", "0"]
        with subprocess.Popen([*command, "--precision", "fp32"], stdout=subprocess.PIPE, text=True) as server:
            address = server.stdout.readline().split()[-1]
            self.finish(run("far", f"distillation.teachers=['{address}']"))
            server.kill()
        self.finish(run("near"))
        assert_equal_weights(tmp_path / "far", tmp_path / "near")
