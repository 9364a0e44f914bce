"""Elastic distillation: what deaths of teachers and students cost, and what teachers more bring.

Losslessness is counted on a tiny model, for it is a matter of the stream alone; throughput is measured on MiniLM. All
processes share the machine's cores: where teacher and student compute on the same silicon no speed-up can exist, and
what a teacher elsewhere would bring is simulated by sleeping its measured latency, and named so.
"""

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from benches.harness import Bench, console

from m6rec.assemble import Experiment, build, learnt, open_run, train_run
from m6rec.config import plain
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.world import World, WorldConfig
from m6rec.distillation.lessons import Ask
from m6rec.distillation.roster import make_executor
from m6rec.distillation.task import LabelledBatch
from m6rec.distillation.teacher import TeacherCard
from m6rec.distillation.wire import flatten, pack, unpack
from m6rec.recipe import Recipe, read_recipe
from m6rec.runs import BASE_FOLDER, CARD_FILE
from m6rec.tasks.base import Task, WrappedTask
from m6rec.workflows.distilling import ROSTER_FILE, open_teacher, taught

TRAIN = Path(__file__).parents[1] / "train.py"
TINY = [
    "backbone.name=new",
    "backbone.shape.model_type=bert",
    "backbone.shape.vocabulary=600",
    "backbone.shape.hidden_size=32",
    "backbone.shape.num_layers=2",
    "backbone.shape.feed_forward=64",
    "tuner.name=full",
]
SMALL = ["task.max_events=6", "task.max_branches=8", "training.batch_size=4", "training.precision=fp32"]
LAST = ["training.evaluate_every=null", "training.evaluate_first=false", "training.select_on=null", "training.ema=null"]
SCHEDULES, CRASHES, STEPS, TIMED_STEPS = 20, 10, 24, 10
# A teacher that a schedule adds on the way.
ADDED = "local"


def run(bench: Bench) -> None:
    dataset = bench.work / "little"
    prepare(World(WorldConfig(users=100, items=300, dialogues=5)), dataset, PrepareConfig())
    teacher = teacher_run(bench, dataset, "teacher", TINY)
    figures = bench.once("elastic-teachers", lambda: killed_teachers(bench, dataset, teacher))
    figures |= bench.once("elastic-student", lambda: killed_student(bench, dataset, teacher))
    large = teacher_run(bench, dataset, "minilm", ["backbone.name=minilm"])
    figures |= bench.once("elastic-throughput", lambda: throughput(bench, dataset, large))
    bench.figures = figures
    bench.protocol = {
        "losslessness": f"{SCHEDULES} seeded schedules of kill -9 of teachers at work, one added on the way, against a "
        f"run without failure; {STEPS} steps in the order of the seed; lost and doubled are counted by example",
        "student": f"kill -9 of the student at {CRASHES} random moments; all logged losses and the last weights",
        "throughput": "examples a second between the first label and the last, MiniLM teaching two of its layers; all "
        f"processes share the cores they are pinned to ({os.cpu_count()} in the machine)",
        "simulated": "teachers that sleep the measured latency of the real one and answer with zeros: a simulation",
    }


def teacher_run(bench: Bench, dataset: Path, name: str, words: Sequence[str]) -> Path:
    """Return a ranking run that has hardly learnt anything: what it says does not matter here."""
    out = bench.work / name
    if not (out / CARD_FILE).is_file():
        places = [f"data={dataset}", f"out={out}", "training.max_steps=4", "task.threshold=4"]
        train_run(read_recipe("ranking", [*places, *words, *SMALL, *LAST]))
    return out


def student(dataset: Path, out: Path, teacher: Path, words: Sequence[str] = ()) -> Recipe:
    """Return a recipe of a student that is trained anew."""
    shutil.rmtree(out, ignore_errors=True)  # half a run, where the bench was cut
    places = [f"data={dataset}", f"out={out}", f"distillation.teacher={teacher}", "task.threshold=4"]
    base = [f"backbone.name={teacher / BASE_FOLDER}", "backbone.layers=1", f"training.max_steps={STEPS}"]
    return read_recipe("distillation", [*places, *base, *SMALL, *LAST, "training.num_epochs=null", *words])


class Watched(WrappedTask):
    """A task that keeps a hash of every labelled batch and the moment it came, and tells a plan of it."""

    def __init__(self, inner: Task, then: Callable[[int], None] = lambda number: None) -> None:
        super().__init__(inner)
        self.hashes: list[str] = []
        self.samples: list[tuple[int, ...]] = []
        self.moments: list[float] = []
        self.cpu: list[float] = []
        self._then = then

    def collate(self, examples: list[Any]) -> Any:
        batch = self.inner.collate(examples)
        if isinstance(batch, LabelledBatch):
            content = flatten(batch.batch) | {f"label.{name}": tensor for name, tensor in batch.labels[0].items()}
            self.samples.append(tuple(index for index, _ in examples))
            self.hashes.append(hashlib.sha256(pack(content, {"of": str(self.samples[-1])})).hexdigest())
        self.moments.append(time.monotonic())
        self.cpu.append(time.process_time())
        self._then(len(self.moments))
        return batch


class Schedule:
    """When teachers are killed and added: chosen by a seed, in steps of the student and milliseconds after them.

    Args:
        seed: of the schedule; ``None`` = nothing happens.
        roster: the student's list of teachers.
    """

    def __init__(self, seed: int | None, roster: Path) -> None:
        self.roster, self.teachers, self.killed = roster, list[Mortal](), dict[int, float]()
        self.noticed, self.lost, self.recovered = dict[int, float](), dict[str, float](), list[float]()
        self.asked: Counter[str] = Counter()
        rng = np.random.default_rng(seed)
        steps = rng.choice(np.arange(2, STEPS - 2), 3, replace=False).tolist() if seed is not None else []
        self._kills = {step: float(rng.uniform(0, 0.1)) for step in steps[:2]}
        self._adds = steps[2:]
        self._rng, self._timers = rng, list[threading.Timer]()

    def make(self, word: str, opener: Any) -> "Mortal":
        self.teachers.append(Mortal(self, make_executor(word, opener)))
        return self.teachers[-1]

    def then(self, number: int) -> None:
        if number in self._kills:
            self._timers.append(threading.Timer(self._kills[number], self._kill))
            self._timers[-1].start()
        if number in self._adds:
            self.roster.write_text(self.roster.read_text() + f"{ADDED}\n")

    def _kill(self) -> None:
        alive = [teacher for teacher in self.teachers if teacher.up]
        busy = [teacher for teacher in alive if teacher.busy] or alive
        if busy:
            pid = busy[int(self._rng.integers(len(busy)))].executor.pid
            with suppress(ProcessLookupError):
                self.killed[pid] = time.monotonic()
                os.kill(pid, signal.SIGKILL)


class Mortal:
    """A local teacher that a schedule can kill, with a record of what became of its batches."""

    def __init__(self, schedule: Schedule, executor: Any) -> None:
        self.schedule, self.executor, self.up, self.busy = schedule, executor, False, False

    def open(self) -> TeacherCard:
        card = self.executor.open()
        self.up = True
        return card

    def label(self, request: bytes) -> bytes:
        of, self.busy = hashlib.sha256(request).hexdigest(), True
        self.schedule.asked[of] += 1
        try:
            answer = self.executor.label(request)
        except ConnectionError:
            self.schedule.noticed[self.executor.pid] = time.monotonic()
            self.schedule.lost[of] = self.schedule.killed.get(self.executor.pid, time.monotonic())
            self.up = False
            raise
        finally:
            self.busy = False
        if of in self.schedule.lost:
            self.schedule.recovered.append(time.monotonic() - self.schedule.lost.pop(of))
        return answer

    def close(self) -> None:
        self.up = False
        self.executor.close()


def killed_teachers(bench: Bench, dataset: Path, teacher: Path) -> dict[str, float]:
    """Return what seeded schedules of deaths have changed: nothing, one hopes."""
    whole, hashes, samples = scheduled(bench, dataset, teacher, None)
    found: list[Schedule] = []
    same_order = same_weights = same_multiset = lost = doubled = 0
    for seed in range(2 if bench.quick else SCHEDULES):
        weights, theirs, given = scheduled(bench, dataset, teacher, seed, found)
        same_order += theirs == hashes
        same_multiset += Counter(theirs) == Counter(hashes)
        same_weights += same(whole, weights)
        wanted, got = Counter(samples), Counter(given)
        lost, doubled = lost + (wanted - got).total(), doubled + (got - wanted).total()
        console.print(f"schedule {seed}: {len(found[-1].killed)} killed, {again(found[-1])} batches asked again")
    noticed = [each.noticed[pid] - at for each in found for pid, at in each.killed.items() if pid in each.noticed]
    recovered = [seconds for each in found for seconds in each.recovered]
    return {
        "schedules": len(found),
        "kills": sum(len(each.killed) for each in found),
        "requeued": sum(map(again, found)),
        "lost": lost,
        "doubled": doubled,
        "same_order": same_order / len(found),
        "same_multiset": same_multiset / len(found),
        "same_weights": same_weights / len(found),
        "detection_seconds_median": statistics.median(noticed) if noticed else 0.0,
        "detection_seconds_max": max(noticed, default=0.0),
        "recovery_seconds_median": statistics.median(recovered) if recovered else 0.0,
        "recovery_seconds_max": max(recovered, default=0.0),
    }


def again(schedule: Schedule) -> int:
    """Return how often a batch was asked that had been asked before."""
    return schedule.asked.total() - len(schedule.asked)


def scheduled(
    bench: Bench, dataset: Path, teacher: Path, seed: int | None, found: list[Schedule] | None = None
) -> tuple[dict[str, torch.Tensor], list[str], list[tuple[int, ...]]]:
    """Return a student's weights, and hashes and examples of its batches, under one schedule."""
    out = bench.work / f"student-{seed}"
    watched: list[Watched] = []
    schedule = Schedule(seed, out / ROSTER_FILE)
    with ExitStack() as until_done:

        def wrap(experiment: Experiment) -> Task:
            watched.append(Watched(taught(experiment, until_done, schedule.make), schedule.then))
            return watched[0]

        train_run(student(dataset, out, teacher, ["distillation.teachers=[local, local, local]"]), wrap=wrap)
    if found is not None:
        found.append(schedule)
    return weights_of(out), watched[0].hashes, watched[0].samples


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Return all that a run has learnt."""
    opened = open_run(run)
    return {**opened.task.state_dict(), **opened.backbone.state_dict()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Return whether two runs have learnt the same, bit for bit; what is not known (NaN) is the same too."""
    return all(torch.allclose(ours[name], theirs[name], rtol=0, atol=0, equal_nan=True) for name in ours)


def killed_student(bench: Bench, dataset: Path, teacher: Path) -> dict[str, float]:
    """Return how far a student that is killed again and again ends from one that is left alone."""
    words = ["training.save_every=1", "training.log_every=1"]
    crashes = 1 if bench.quick else CRASHES
    losses, weights = {}, {}
    for name, kills in (("alone", 0), ("crashed", crashes)):
        recipe = student(dataset, bench.work / name, teacher, words)
        path = bench.work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(plain(recipe)), encoding="utf-8")
        moments = np.sort(np.random.default_rng(0).choice(np.arange(1, STEPS), kills, replace=False)).tolist()
        for moment in [*moments, None]:
            student_process(path, bench.work / name / "train_log.jsonl", moment)
        losses[name], weights[name] = logged(bench.work / name), weights_of(bench.work / name)
    steps = losses["alone"].keys()
    apart = [abs(loss - losses["alone"][step][0]) for step in steps for loss in losses["crashed"][step]]
    equal = float(same(weights["alone"], weights["crashed"]))
    return {"crashes": crashes, "crashed_loss_difference_max": max(apart), "crashed_same_weights": equal}


def student_process(recipe: Path, log: Path, moment: int | None) -> None:
    """Run the student; kill it a random while after it has logged step ``moment`` (``None`` = let it end)."""
    command = [sys.executable, str(TRAIN), str(recipe), "--resume"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        if moment is not None:
            while process.poll() is None and not _reached(log, moment):
                time.sleep(0.01)
            time.sleep(float(np.random.default_rng(moment).uniform(0, 0.3)))
            process.kill()
        said = process.communicate()[1]
    if moment is None and process.returncode:
        raise RuntimeError(said[-2000:])


def _reached(log: Path, step: int) -> bool:
    return log.is_file() and any(record.get("step", 0) >= step for record in _records(log))


def _records(log: Path) -> list[dict[str, Any]]:
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]  # what stands after the last end is half a line
    return [json.loads(line) for line in lines]


def logged(run: Path) -> dict[int, list[float]]:
    """Return every loss that was logged for each step, those of steps done again after a crash included."""
    losses: dict[int, list[float]] = {}
    for record in _records(run / "train_log.jsonl"):
        if "loss" in record:
            losses.setdefault(record["step"], []).append(record["loss"])
    return losses


class Simulated:
    """A teacher far away: it sleeps as long as the real one computes, and answers with zeros."""

    def __init__(self, card: TeacherCard, seconds: float) -> None:
        self._card, self._seconds = card, seconds

    def open(self) -> TeacherCard:
        return self._card

    def label(self, request: bytes) -> bytes:
        time.sleep(self._seconds)
        return pack({"scores": torch.zeros(len(unpack(request)[0]["rows"]), 2).half()}, {"version": self._card.version})

    def close(self) -> None:
        """Nothing is open."""


def throughput(bench: Bench, dataset: Path, teacher: Path) -> dict[str, float]:
    """Return examples a second, and CPU-seconds of the student's process, of every way to come by labels."""
    words = ["backbone.name=minilm", "backbone.layers=2", f"training.max_steps={4 if bench.quick else TIMED_STEPS}"]
    figures: dict[str, float] = {}
    speed = partial(time_student, figures, bench, dataset, teacher)
    speed("alone", words, without=True)
    speed("online", [*words, "distillation.source=online"])
    for number in (1,) if bench.quick else (1, 2):
        speed(f"teachers_{number}", [*words, f"distillation.teachers=[{', '.join(['local'] * number)}]"])
    card, seconds = latency(dataset, teacher, [*words, "distillation.source=online"], bench.work / "latency")
    figures["teacher_seconds_per_batch"] = seconds

    def far(word: str, opener: Any) -> Simulated:
        return Simulated(card, seconds)

    for number in (1, 2, 4) if bench.quick else (1, 2, 3, 4, 6):
        chosen = [*words, f"distillation.teachers=[{', '.join(['local'] * number)}]"]
        speed(f"simulated_{number}", chosen, make=far)
    for window in (1, 4) if bench.quick else (1, 2, 4, 8, 16):
        chosen = [*words, "distillation.teachers=[local, local, local, local]", f"distillation.stream.window={window}"]
        speed(f"simulated_4_window_{window}", chosen, make=far)
    online = figures["online_examples_per_second"]
    figures["local_over_online"] = figures["teachers_1_examples_per_second"] / online
    figures["simulated_over_online"] = figures["simulated_4_examples_per_second"] / online
    figures["simulated_over_alone"] = figures["simulated_4_examples_per_second"] / figures["alone_examples_per_second"]
    return figures


def latency(dataset: Path, teacher: Path, words: Sequence[str], out: Path) -> tuple[TeacherCard, float]:
    """Return a teacher's card and the median seconds that it takes for a batch."""
    recipe = student(dataset, out, teacher, words)
    task, asked = build(recipe).task, Ask.of(recipe.distillation, "ranking")
    opened, examples, seconds = open_teacher(teacher), task.examples(), []
    for first in range(0, 24, 4):
        batch = task.collate([examples[index] for index in range(first, first + 4)])
        started = time.perf_counter()
        opened.label(batch, asked)
        seconds.append(time.perf_counter() - started)
    return opened.card, statistics.median(seconds)


def time_student(
    figures: dict[str, float],
    bench: Bench,
    dataset: Path,
    teacher: Path,
    name: str,
    words: Sequence[str],
    without: bool = False,
    make: Any = make_executor,
) -> None:
    """Add what a student's examples take, from its second batch on, under the name of its run."""
    out, watched = bench.work / f"speed-{name}", list[Watched]()
    recipe = student(dataset, out, teacher, words)
    with ExitStack() as until_done:

        def wrap(experiment: Experiment) -> Task:
            alone = replace(experiment, recipe=replace(experiment.recipe, distillation=None))
            watched.append(Watched(learnt(alone) if without else taught(experiment, until_done, make)))
            return watched[0]

        train_run(recipe, wrap=wrap)
    moments, cpu = watched[0].moments, watched[0].cpu
    examples = 4 * (len(moments) - 2)
    figures[f"{name}_examples_per_second"] = examples / (moments[-1] - moments[1])
    figures[f"{name}_student_cpu_seconds_per_example"] = (cpu[-1] - cpu[1]) / examples
