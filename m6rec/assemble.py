"""The composition root: from a recipe to objects, from objects to a run folder, and back.

The only place that knows every shelf. A run folder holds ``recipe.yaml`` (resolved), ``run.json``, ``task/``,
``adapter/``, ``templates/`` (the words), ``checkpoints/`` and ``train_log.jsonl``.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m6rec.backbones.base import Backbone
from m6rec.backbones.create import save_backbone
from m6rec.backbones.scenes import SceneBackbone
from m6rec.bases import base_backbone, make_base
from m6rec.compressors.exits import ExitingBackbone, ExitTask, load_exits, save_exits
from m6rec.data.scenes import SceneRule
from m6rec.data.store import Dataset
from m6rec.errors import ConfigError, RunError, SharedWeightsError
from m6rec.late_interaction.backbone import LateBackbone, trained_late_interaction, with_late_interaction
from m6rec.late_interaction.scorer import served
from m6rec.recipe import Recipe, check_recipe, dump, plugin
from m6rec.runs import (
    ADAPTER_FOLDER,
    CARD_FILE,
    EXITS_FOLDER,
    MODEL_FOLDER,
    RECIPE_FILE,
    RUN_FORMAT,
    TASK_FOLDER,
    WORDS_FOLDER,
    kept_words,
    read_card,
    read_recipe_tree,
    versions,
)
from m6rec.tasks.base import Material, Task
from m6rec.tasks.pretraining.task import Pretraining
from m6rec.tasks.scenes import SceneTask
from m6rec.text.library import find
from m6rec.text.render import Renderer
from m6rec.training.loop import TrainResult, train
from m6rec.tuners.base import Tuner
from m6rec.tuners.full import FullTuner
from m6rec.tuners.pool import find_adapter, open_adapter
from m6rec.tuners.state import TrainedShare, trained_share
from m6rec.validation import validator

logger = logging.getLogger(__name__)


@dataclass
class Experiment:
    """What a recipe comes to: objects that fit each other."""

    recipe: Recipe
    dataset: Dataset
    renderer: Renderer
    backbone: Backbone
    tuner: Tuner
    task: Task


@dataclass(frozen=True)
class Run:
    """A finished run, opened for inference."""

    folder: Path
    recipe: Recipe
    renderer: Renderer
    backbone: Backbone
    task: Task
    card: dict[str, Any]


def build(recipe: Recipe) -> Experiment:
    """Turn a recipe into objects over its dataset."""
    dataset = Dataset.open(recipe.data)
    renderer = Renderer(recipe.domain or dataset.manifest.domain)
    torch.manual_seed(recipe.seed)
    material = _material(recipe, dataset, renderer, Path(recipe.out))
    make_base(recipe, material)
    backbone, tuner = _tuned(recipe)
    kind, config = plugin("task", recipe.task)
    task = kind.build(config, material, backbone)
    if not task.trains_backbone:
        _check_tuner_is_used(recipe)
        backbone.requires_grad_(False)
    return Experiment(recipe, dataset, renderer, backbone, tuner, task)


def train_run(
    recipe: Recipe, *, resume: bool = False, wrap: Callable[[Experiment], Task] | None = None
) -> tuple[Experiment, TrainResult]:
    """Train a recipe and write its run folder.

    Args:
        recipe: what to train.
        resume: go on from the newest checkpoint.
        wrap: what the loop learns instead of :func:`learnt`'s; what is kept is the task inside.

    Raises:
        ConfigError: the recipe does not fit its data or the backbone.
        RunError: ``out`` holds another run, or this one and nobody asked to resume it; it stays as it is.
    """
    out = Path(recipe.out)
    _check_unclaimed(out, recipe, resume)
    experiment = build(recipe)
    task, share = (wrap or learnt)(experiment), trained_share(experiment.backbone)
    logger.info("backbone %s: %s", recipe.backbone.name, share)
    training, judge = recipe.training, None
    if training.evaluate_every is not None:
        judge = validator(experiment.task, experiment.backbone, experiment.dataset, recipe.seed)
    if training.evaluate_every is not None and judge is None:
        logger.warning("the dataset holds nothing out for validation: the last weights are kept, whatever their worth")
        training = training.without_evaluation()
    if _is_main_process():
        _claim(out, recipe)
    result = TrainResult.nothing()
    if task.learns:
        result = train(task, experiment.backbone, training, out, resume=resume, evaluate=judge)
    if not result.interrupted and _is_main_process():
        task.finish(experiment.backbone)
        write_run(experiment, result, share)
    return experiment, result


def learnt(experiment: Experiment) -> Task:
    """Return what the loop learns: the task itself, at every depth, or in its scenes where recipe or backbone has any.

    Raises:
        ConfigError: the task's examples are of no scene.
    """
    scenes, task = experiment.recipe.scenes, experiment.task
    if experiment.recipe.dense is not None:
        raise ConfigError("a recipe with dense is taught in stages: train it by workflows.stages.train, or m6rec train")
    if experiment.recipe.distillation is not None:
        raise ConfigError("a recipe with distillation is taught by workflows.distilling.train, or m6rec train")
    if experiment.recipe.exits is not None:
        return ExitTask(task, experiment.recipe.exits)
    if scenes is None:
        return SceneTask(task) if isinstance(experiment.backbone, SceneBackbone) else task
    if task.scenes() is None:
        raise ConfigError(f"got scenes for task {task.name!r}, whose examples are of none; remove them, or use ranking")
    wrapped = SceneTask(task, scenes.sampling == "sqrt", experiment.recipe.seed)
    wrapped.log_sizes(scenes.scenes)
    return wrapped


def write_run(experiment: Experiment, result: TrainResult, share: TrainedShare) -> None:
    """Write what inference needs beside the checkpoints; ``run.json`` comes last and marks the run as whole."""
    out = Path(experiment.recipe.out)
    experiment.task.save(out / TASK_FOLDER)
    shutil.rmtree(out / ADAPTER_FOLDER, ignore_errors=True)
    experiment.tuner.save(out / ADAPTER_FOLDER)
    if isinstance(experiment.backbone, LateBackbone):
        experiment.backbone.save(out / ADAPTER_FOLDER)
    if isinstance(experiment.backbone, ExitingBackbone):
        save_exits(experiment.backbone, out / EXITS_FOLDER)
    if isinstance(experiment.task, Pretraining) and isinstance(experiment.tuner, FullTuner):
        save_backbone(experiment.backbone, out / MODEL_FOLDER)
    _keep_words(experiment, out / WORDS_FOLDER)
    heads = sum(parameter.numel() for parameter in experiment.task.parameters() if parameter.requires_grad)
    card = {
        "format": RUN_FORMAT,
        "task": experiment.recipe.task["name"],
        "tuner": experiment.recipe.tuner["name"],
        "backbone": {"name": experiment.recipe.backbone.origin, "fingerprint": experiment.backbone.fingerprint},
        "data": experiment.dataset.manifest.card(),
        "trained_parameters": {
            "adapter": share.trained,
            "heads": heads,
            "backbone": share.total,
            "adapter_percent": share.percent,
        },
        "steps": result.steps,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "stopped": result.stopped,
        "versions": versions(),
    }
    temporary = out / f"{CARD_FILE}.part"
    temporary.write_text(json.dumps(card, indent=1), encoding="utf-8")
    temporary.replace(out / CARD_FILE)


def open_run(folder: str | Path, backbone: Backbone | None = None) -> Run:
    """Open a finished run for inference; its dataset is not needed.

    Args:
        folder: the run's.
        backbone: a bare one that other runs stand on too; it stays as it is. Default: one of the run's own.

    Raises:
        RunError: no run there, an unfinished one, one of another version, or one whose files are damaged.
        SharedWeightsError: the run's tuner changes the weights of a given backbone.
    """
    folder = Path(folder)
    card, recipe = read_card(folder), check_recipe(read_recipe_tree(folder))
    renderer = Renderer(kept_words(folder, "data_templates", recipe.domain or card["data"]["domain"]))
    tuned = served(tuned_backbone(folder, recipe, card, backbone))
    kind, config = _task_plugin(folder, recipe)
    task = kind.load(config, folder / TASK_FOLDER, renderer, tuned)
    return Run(folder, recipe, renderer, tuned, task.eval(), card)


def open_runs(folders: Sequence[str | Path], backbone: Backbone | None = None) -> list[Run]:
    """Open several runs; those trained on the same weights share one backbone in memory.

    A run that was fine-tuned in full has weights of its own.

    Args:
        folders: the runs'.
        backbone: a bare one in memory, used where it fits.

    Raises:
        RunError: as :func:`open_run`.
    """
    shared = {} if backbone is None else {backbone.fingerprint: backbone}
    runs = []
    for folder in map(Path, folders):
        card, recipe = read_card(folder), check_recipe(read_recipe_tree(folder))
        weights = card["backbone"]["fingerprint"]
        if weights not in shared:
            shared[weights] = base_backbone(recipe, folder)
        try:
            runs.append(open_run(folder, shared[weights]))
        except SharedWeightsError:
            runs.append(open_run(folder))
    return runs


def open_experiment(folder: str | Path, data: str | None = None) -> Experiment:
    """Open a finished run over its dataset, for evaluation.

    Raises:
        RunError: as :func:`open_run`, or the dataset is not the one that the run was trained on.
    """
    folder = Path(folder)
    card, recipe = read_card(folder), check_recipe(read_recipe_tree(folder))
    dataset = Dataset.open(data or recipe.data)
    if dataset.manifest.hash != card["data"]["hash"]:
        raise RunError(
            f"{folder} was trained on another dataset than {dataset.folder} (its hash differs); give data=DIR"
        )
    renderer = Renderer(kept_words(folder, "data_templates", recipe.domain or dataset.manifest.domain))
    backbone = tuned_backbone(folder, recipe, card)
    kind, config = _task_plugin(folder, recipe)
    task = kind.build(config, _material(recipe, dataset, renderer, folder), backbone)
    task.restore(folder / TASK_FOLDER, backbone)
    return Experiment(recipe, dataset, renderer, backbone, _tuner(recipe), task.eval())


def tuned_backbone(folder: Path, recipe: Recipe, card: dict[str, Any], base: Backbone | None = None) -> Backbone:
    """Return the run's backbone with its adapter loaded.

    Args:
        folder: the run's.
        recipe: as it was trained.
        card: its ``run.json``.
        base: a bare backbone to share the weights of; default: the recipe's, loaded anew.

    Raises:
        RunError: the backbone has other weights than the run was trained on.
    """
    backbone = base_backbone(recipe, folder) if base is None else base
    if backbone.fingerprint != card["backbone"]["fingerprint"]:
        raise RunError(
            f"{folder} was trained on other weights of {recipe.backbone.name!r} than those found now "
            f"({backbone.name}); name the same revision, or train again"
        )
    tuner, adapter = _tuner(recipe, trained=True), find_adapter(folder)
    if base is not None:
        tuned = open_adapter(base, adapter, tuner)
    else:
        tuned = tuner.attach(backbone)
        tuner.load(adapter)
        tuned.requires_grad_(False).eval()
    tuned = trained_late_interaction(tuned, recipe.late_interaction, adapter)
    return tuned if recipe.exits is None else load_exits(tuned, recipe.exits, folder / EXITS_FOLDER)


def _task_plugin(folder: Path, recipe: Recipe) -> tuple[Any, Any]:
    """Return a finished run's task and its settings, with the prompt that it was trained on."""
    settings = dict(recipe.task)
    if "prompt" in settings:
        settings["prompt"] = kept_words(folder, "prompts", settings["prompt"])
    return plugin("task", settings)


def _keep_words(experiment: Experiment, folder: Path) -> None:
    """Copy the words that the run was trained on, for templates may change under their names."""
    for shelf in ("data_templates", "prompts"):
        shutil.rmtree(folder / shelf, ignore_errors=True)
        (folder / shelf).mkdir(parents=True)
    experiment.renderer.save(folder / "data_templates" / f"{experiment.renderer.domain}.yaml")
    if "prompt" in experiment.recipe.task:
        prompt = find("prompts", experiment.recipe.task["prompt"])
        shutil.copyfile(prompt, folder / "prompts" / f"{prompt.stem}.yaml")


def _material(recipe: Recipe, dataset: Dataset, renderer: Renderer, folder: Path) -> Material:
    rule = SceneRule(recipe.scenes) if recipe.scenes is not None else None
    return Material(dataset, renderer, folder / "cache", recipe.seed, rule)


def _tuned(recipe: Recipe) -> tuple[Backbone, Tuner]:
    tuner = _tuner(recipe)
    tuned = tuner.attach(base_backbone(recipe, Path(recipe.out)))
    start = None if recipe.start is None else find_adapter(Path(recipe.start))
    if start is not None:
        tuner.load(start)
    tuned = with_late_interaction(tuned, recipe.late_interaction, start)
    return tuned if recipe.exits is None else ExitingBackbone(tuned, recipe.exits), tuner


def _tuner(recipe: Recipe, trained: bool = False) -> Any:
    """Return the recipe's tuner; where its weights are read, whatever training started from may be gone."""
    settings = {name: value for name, value in recipe.tuner.items() if not (trained and name == "start")}
    kind, config = plugin("tuner", settings)
    return kind(config)


def _check_tuner_is_used(recipe: Recipe) -> None:
    if recipe.tuner["name"] != "none":
        raise ConfigError(
            f"tuner {recipe.tuner['name']!r} would train nothing: item vectors are cached; "
            "set task.item_vectors=step (the tuner learns through the item encoder), or tuner.name=none"
        )


def _check_unclaimed(out: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse to mix two runs, before anything is touched."""
    path = out / RECIPE_FILE
    started = (out / CARD_FILE).is_file() or any((out / "checkpoints").glob("*"))
    if not started or not path.is_file():
        return
    if path.read_text(encoding="utf-8") != dump(recipe):
        raise RunError(f"{out} holds a run of another recipe; give another out=, or remove it")
    if not resume:
        raise RunError(f"{out} holds a run of this recipe; go on with --resume, give another out=, or remove it")


def _claim(out: Path, recipe: Recipe) -> None:
    """Write the resolved recipe into the run folder, which is no finished run from here on."""
    out.mkdir(parents=True, exist_ok=True)
    (out / CARD_FILE).unlink(missing_ok=True)
    (out / RECIPE_FILE).write_text(dump(recipe), encoding="utf-8")


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
