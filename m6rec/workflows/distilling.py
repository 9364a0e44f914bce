"""A recipe with a teacher: opens the teacher's run, says where its labels come from, and trains the student.

The student's run folder gets ``teachers.txt`` (elastic: who should be teaching; may be edited at any time),
``teachers.json`` (their versions) or ``labels/`` (offline). Knows no command line and no way of compression.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from m6rec.assemble import Experiment, learnt, open_experiment, open_run, train_run
from m6rec.backbones.scenes import SceneBackbone
from m6rec.distillation.config import DistillationConfig
from m6rec.distillation.labels import LabelStream
from m6rec.distillation.lessons import LESSONS, Ask, Labels, Lesson
from m6rec.distillation.relations import RelationConfig, RelationTask
from m6rec.distillation.roster import MakeExecutor, Roster, make_executor
from m6rec.distillation.sources import ElasticLabels, LabelSource, OnlineLabels, StoredLabels
from m6rec.distillation.stored import LabelStore, write_labels
from m6rec.distillation.task import DistilTask
from m6rec.distillation.teacher import Teacher, TeacherCard, card_of
from m6rec.errors import ConfigError, DistillationError
from m6rec.recipe import Recipe
from m6rec.runs import ADAPTER_FOLDER, BASE_FOLDER, EXITS_FOLDER, TASK_FOLDER, read_card, read_recipe_tree
from m6rec.tasks.base import Task
from m6rec.training.chance import drawn_at
from m6rec.training.learner import use_bf16
from m6rec.training.loop import TrainResult
from m6rec.training.stream import Stream

ROSTER_FILE, VERSIONS_FILE, LABELS_FOLDER = "teachers.txt", "teachers.json", "labels"
# What batches made ahead are drawn for, beside the loop's own places.
AHEAD = 2
logger = logging.getLogger(__name__)


def train(recipe: Recipe, *, resume: bool = False) -> tuple[Experiment, TrainResult]:
    """Train a recipe with ``distillation``.

    Args:
        recipe: the student's.
        resume: go on from the newest checkpoint; labels that were on their way are asked for again.

    Raises:
        ConfigError: a task that cannot be taught so.
        DistillationError: no teacher, one that does not fit, or labels that cannot be used.
        RunError: as :func:`m6rec.assemble.train_run`.
    """
    with ExitStack() as until_done:
        return train_run(recipe, resume=resume, wrap=lambda experiment: taught(experiment, until_done))


def taught(experiment: Experiment, until_done: ExitStack, make: MakeExecutor = make_executor) -> Task:
    """Return what the loop learns: the experiment's task with a teacher, at every depth where the recipe has exits.

    Args:
        experiment: of a recipe with ``distillation``.
        until_done: its teachers are let go when this is closed.
        make: word of `distillation.teachers` -> where that teacher runs.

    Raises:
        ConfigError: a task, or a recipe, that cannot be taught so.
        DistillationError: the teacher does not fit.
    """
    recipe, config = experiment.recipe, experiment.recipe.distillation
    assert config is not None
    if recipe.scenes or recipe.dense or isinstance(experiment.backbone, SceneBackbone):
        raise ConfigError("got distillation together with scenes or dense, expected one of them; remove the other")
    ask = Ask.of(config, experiment.task.name)
    lesson = LESSONS[experiment.task.name](ask)
    wanted = card_of(experiment.task, experiment.backbone)
    for run in config.runs:
        _check_folder(run, wanted)
    _keep_versions(Path(recipe.out), config)
    teachers: list[Teacher] = []
    if config.source != "elastic":
        teachers = [open_teacher(run, recipe.data, recipe.training.precision) for run in config.runs]
        _check_fit(teachers, wanted)
    source = _source(experiment, config, lesson, wanted, teachers, until_done, make)
    plain = replace(experiment, recipe=replace(recipe, distillation=None))
    task = learnt(replace(plain, task=DistilTask(experiment.task, lesson, source, config.alpha)))
    if not config.relations:
        return task
    return RelationTask(task, teachers[0].backbone, RelationConfig(weight=config.relations))


def open_teacher(run: str | Path, data: str | None = None, precision: str = "auto") -> Teacher:
    """Return a finished run as a teacher, on the accelerator where there is one.

    Args:
        run: its folder.
        data: dataset folder, which a retriever needs: its batches name items by number.
        precision: arithmetic, as ``training.precision``.

    Raises:
        RunError: no such run, or its dataset is another one.
        DistillationError: a task that nothing can be taught to.
    """
    folder = Path(run)
    needs_data = read_recipe_tree(folder)["task"]["name"] == "retrieval"
    opened = open_experiment(folder, data) if needs_data else open_run(folder)
    device = torch.device(torch.accelerator.current_accelerator() or "cpu")
    return Teacher(opened.task.to(device), opened.backbone.to(device), version_of(folder), use_bf16(precision, device))


def version_of(folder: Path) -> str:
    """Return a short hash of all that a finished run has learnt."""
    found = hashlib.sha256(read_card(folder)["backbone"]["fingerprint"].encode())
    for part in (ADAPTER_FOLDER, BASE_FOLDER, EXITS_FOLDER, TASK_FOLDER):
        for path in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
            found.update(path.relative_to(folder).as_posix().encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def _check_folder(run: str, wanted: TeacherCard) -> None:
    name = read_recipe_tree(Path(run))["task"]["name"]
    if name != wanted.task:
        raise DistillationError(f"got the teacher {run}, a run of task {name!r}, expected one of {wanted.task!r}")


def _keep_versions(out: Path, config: DistillationConfig) -> None:
    """Write down what teaches a run, so that it is not resumed with other weights.

    Raises:
        DistillationError: the teacher has been trained again since.
    """
    path, versions = out / VERSIONS_FILE, [version_of(Path(run)) for run in config.runs]
    if any((out / "checkpoints").glob("*")) and path.is_file() and not config.stream.mix_versions:
        if (before := json.loads(path.read_text(encoding="utf-8"))) != versions:
            raise DistillationError(
                f"{out} was taught by versions {before}, and the teacher's run now has {versions}; bring those weights "
                "back, give another out=, or set distillation.stream.mix_versions=true"
            )
    elif _place()[0] == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(versions), encoding="utf-8")


def _check_fit(teachers: Sequence[Teacher], wanted: TeacherCard) -> None:
    for teacher in teachers:
        if mismatch := teacher.card.mismatch(wanted):
            raise DistillationError(
                f"the teacher {teacher.backbone.name} has {mismatch}; take one that was trained on the same backbone"
            )


def _source(
    experiment: Experiment,
    config: DistillationConfig,
    lesson: Lesson,
    wanted: TeacherCard,
    teachers: Sequence[Teacher],
    until_done: ExitStack,
    make: MakeExecutor,
) -> LabelSource:
    drawing = partial(drawn_at, experiment.recipe.seed, AHEAD)
    if config.source == "online":
        return OnlineLabels(teachers, lesson.ask, drawing)
    if config.source == "offline":
        return StoredLabels(_stores(experiment, config, lesson, teachers), lesson, drawing)
    streams = _streams(experiment, config, wanted, until_done, make)
    return ElasticLabels(streams, lesson, partial(_plan, experiment), drawing)


def _streams(
    experiment: Experiment, config: DistillationConfig, wanted: TeacherCard, until_done: ExitStack, make: MakeExecutor
) -> list[LabelStream]:
    recipe, streams = experiment.recipe, []
    rank, processes = _place()
    if processes > 1 and not config.stream.ordered:
        raise ConfigError(
            "distillation.stream.ordered: got false with several processes, expected true, or one process"
        )
    # Every process has teachers of its own; where there are fewer, some share an address.
    words = config.teachers[rank::processes] or (config.teachers[rank % len(config.teachers)],)
    for number, run in enumerate(config.runs):
        names = "" if rank == number == 0 else f"-{number}-{rank}"
        path = Path(recipe.out) / f"{Path(ROSTER_FILE).stem}{names}.txt"
        opener = partial(open_teacher, run, recipe.data, recipe.training.precision)
        pool = Roster(path, words, opener, make)
        until_done.callback(pool.close)
        stream = LabelStream(pool, config.stream, replace(wanted, version=version_of(Path(run))))
        until_done.callback(_tell, stream)
        streams.append(stream)
    return streams


def _tell(stream: LabelStream) -> None:
    logger.info("%s", stream.line())


def _plan(experiment: Experiment, epoch: int) -> list[tuple[int, ...]]:
    """Return the examples of each piece that this process runs in an epoch, as the loop orders them."""
    task = experiment.task
    stream = Stream.of(experiment.recipe.training, len(task.examples()), task.lengths(), *_place())
    return [piece.indices for batch in range(stream.num_batches) for piece in stream.pieces(epoch, batch)]


def _place() -> tuple[int, int]:
    """Return the number of this process, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _stores(
    experiment: Experiment, config: DistillationConfig, lesson: Lesson, teachers: Sequence[Teacher]
) -> list[LabelStore]:
    """Return every teacher's labels; those that are not there are written first."""
    task, recipe, stores = experiment.task, experiment.recipe, []
    task.refresh(experiment.backbone, 0)  # a retriever's batches name what is encoded
    examples = task.examples()
    for number, (run, teacher) in enumerate(zip(config.runs, teachers, strict=True)):
        folder = Path(recipe.out) / LABELS_FOLDER / str(number)
        key: dict[str, Any] = {
            "teacher": version_of(Path(run)),
            "data": experiment.dataset.manifest.hash,
            "task": recipe.task,
            "seed": recipe.seed,
            "asked": asdict(lesson.ask),
            "tokenizer": teacher.card.tokenizer,
        }

        def label(indices: Sequence[int], teacher: Teacher = teacher) -> tuple[Labels, torch.Tensor]:
            with drawn_at(recipe.seed, AHEAD, indices[0]):
                batch = task.collate([examples[index] for index in indices])
            return teacher.label(batch, lesson.ask), lesson.rows(batch)

        with PartialState().main_process_first():
            done = write_labels(folder, key, len(examples), config.batch_size, label)
        stores.append(LabelStore.open(folder, key, len(examples)))
        logger.info("labels in %s: %d examples, %d written now, %.2f MB", folder, len(examples), done,
                    stores[-1].num_bytes / 1e6)  # fmt: skip
    return stores
