"""The composition root: from a recipe to objects, from objects to a run folder, and back.

The only place that knows every shelf. A run folder holds ``recipe.yaml`` (resolved), ``run.json``, ``task/``,
``adapter/``, ``checkpoints/`` and ``train_log.jsonl``.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from m6rec.backbones.base import Backbone
from m6rec.backbones.resolve import resolve_backbone
from m6rec.config import plain
from m6rec.data.store import Dataset
from m6rec.errors import ConfigError, RunError
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.pairs import evaluate_pairs
from m6rec.recipe import Recipe, check_recipe, dump, plugin
from m6rec.tasks.base import Material, Task
from m6rec.tasks.ranking import Ranking, RankingScorer
from m6rec.tasks.retrieval import Retrieval
from m6rec.tasks.retrieval_data import RetrievalScorer
from m6rec.text.render import Renderer
from m6rec.training.loop import TrainResult, train
from m6rec.training.run import Evaluate
from m6rec.tuners.base import Tuner
from m6rec.tuners.state import TrainedShare, trained_share

RUN_FORMAT = 1
VALIDATION_USERS = 4000
# A pair costs a pass over words: some thousand settle which weights are better.
VALIDATION_PAIRS = 4000
PACKAGES = ("m6rec", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")
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
    backbone, tuner = _tuned(recipe)
    kind, config = plugin("task", recipe.task)
    task = kind.build(config, Material(dataset, renderer, Path(recipe.out) / "cache", recipe.seed), backbone)
    if not task.trains_backbone:
        _check_tuner_is_used(recipe)
        backbone.requires_grad_(False)
    return Experiment(recipe, dataset, renderer, backbone, tuner, task)


def train_run(recipe: Recipe, *, resume: bool = False) -> tuple[Experiment, TrainResult]:
    """Train a recipe and write its run folder.

    Raises:
        ConfigError: the recipe does not fit its data or the backbone.
        RunError: ``out`` holds another run, or this one and nobody asked to resume it; it stays as it is.
    """
    out = Path(recipe.out)
    _check_unclaimed(out, recipe, resume)
    experiment = build(recipe)
    share = trained_share(experiment.backbone)
    logger.info("backbone %s: %s", recipe.backbone.name, share)
    training, judge = recipe.training, None
    if training.evaluate_every is not None and (judge := validator(experiment)) is None:
        logger.warning("the dataset holds nothing out for validation: the last weights are kept, whatever their worth")
        training = training.without_evaluation()
    if _is_main_process():
        _claim(out, recipe)
    result = train(experiment.task, experiment.backbone, training, out, resume=resume, evaluate=judge)
    if not result.interrupted and _is_main_process():
        experiment.task.finish(experiment.backbone)
        write_run(experiment, result, share)
    return experiment, result


def validator(experiment: Experiment) -> Evaluate | None:
    """Return step -> validation figures, on a seeded sample of what was held out for it; ``None`` = nothing was."""
    task, backbone, seed = experiment.task, experiment.backbone, experiment.recipe.seed
    rng = np.random.default_rng(seed)
    if isinstance(task, Ranking):
        pairs = task.pairs("valid")
        sample = pairs.take(_some_users(pairs.users, rng, VALIDATION_PAIRS))
        if not len(sample):
            return None
        return lambda _: evaluate_pairs(RankingScorer(task, backbone, "valid"), sample).means()
    queries = experiment.dataset.histories().queries("valid")
    chosen = queries.take(np.sort(rng.permutation(len(queries))[:VALIDATION_USERS]))
    assert isinstance(task, Retrieval)
    if not len(chosen):
        return None
    return lambda _: evaluate(RetrievalScorer(task, backbone), chosen, seed=seed).means()


def _some_users(users: NDArray[np.int32], rng: np.random.Generator, at_most: int) -> NDArray[np.int64]:
    """Return the rows of whole users, drawn until they have ``at_most`` rows together."""
    names, counts = np.unique(users, return_counts=True)
    order = rng.permutation(len(names))
    kept = np.cumsum(counts[order]) - counts[order] < at_most
    return np.flatnonzero(np.isin(users, names[order[kept]]))


def write_run(experiment: Experiment, result: TrainResult, share: TrainedShare) -> None:
    """Write what inference needs beside the checkpoints; ``run.json`` comes last and marks the run as whole."""
    out = Path(experiment.recipe.out)
    experiment.task.save(out / "task")
    shutil.rmtree(out / "adapter", ignore_errors=True)
    experiment.tuner.save(out / "adapter")
    heads = sum(parameter.numel() for parameter in experiment.task.parameters() if parameter.requires_grad)
    card = {
        "format": RUN_FORMAT,
        "task": experiment.recipe.task["name"],
        "tuner": experiment.recipe.tuner["name"],
        "backbone": {"name": experiment.recipe.backbone.name, "fingerprint": experiment.backbone.fingerprint},
        "data": data_card(experiment.dataset),
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
    temporary = out / "run.json.part"
    temporary.write_text(json.dumps(card, indent=1), encoding="utf-8")
    temporary.replace(out / "run.json")


def open_run(folder: str | Path) -> Run:
    """Open a finished run for inference; its dataset is not needed.

    Raises:
        RunError: no run there, an unfinished one, one of another version, or one whose files are damaged.
    """
    folder = Path(folder)
    card, recipe = read_card(folder), _read_saved_recipe(folder)
    renderer = Renderer(recipe.domain or card["data"]["domain"])
    backbone = tuned_backbone(folder, recipe, card)
    kind, config = plugin("task", recipe.task)
    task = kind.load(config, folder / "task", renderer, backbone)
    return Run(folder, recipe, renderer, backbone, task.eval(), card)


def open_experiment(folder: str | Path, data: str | None = None) -> Experiment:
    """Open a finished run over its dataset, for evaluation.

    Raises:
        RunError: as :func:`open_run`, or the dataset is not the one that the run was trained on.
    """
    folder = Path(folder)
    card, recipe = read_card(folder), _read_saved_recipe(folder)
    dataset = Dataset.open(data or recipe.data)
    if dataset.manifest.hash != card["data"]["hash"]:
        raise RunError(
            f"{folder} was trained on another dataset than {dataset.folder} (its hash differs); give data=DIR"
        )
    renderer = Renderer(recipe.domain or dataset.manifest.domain)
    backbone = tuned_backbone(folder, recipe, card)
    kind, config = plugin("task", recipe.task)
    task = kind.build(config, Material(dataset, renderer, folder / "cache", recipe.seed), backbone)
    task.restore(folder / "task", backbone)
    return Experiment(recipe, dataset, renderer, backbone, _tuner(recipe), task.eval())


def tuned_backbone(folder: Path, recipe: Recipe, card: dict[str, Any]) -> Backbone:
    """Return the run's backbone with its adapter loaded.

    Raises:
        RunError: the backbone found under its name has other weights.
    """
    backbone = resolve_backbone(recipe.backbone.name, recipe.backbone.revision)
    if backbone.fingerprint != card["backbone"]["fingerprint"]:
        raise RunError(
            f"{folder} was trained on other weights of {recipe.backbone.name!r} than those found now; "
            "name the same revision, or train again"
        )
    tuner = _tuner(recipe)
    tuned = tuner.attach(backbone)
    tuner.load(folder / "adapter")
    tuned.requires_grad_(False)
    return tuned.eval()


def read_card(folder: Path) -> dict[str, Any]:
    """Return a finished run's ``run.json``.

    Raises:
        RunError: no run there, an unfinished one, or one of another version.
    """
    path = folder / "run.json"
    if not folder.is_dir():
        raise RunError(f"no run folder at {folder}; make one with: m6rec train retrieval data=DIR out={folder}")
    if not path.is_file():
        unfinished = (folder / "recipe.yaml").is_file()
        do = (
            "finish it with: m6rec train ... --resume"
            if unfinished
            else "expected recipe.yaml, run.json, task/ and adapter/"
        )
        raise RunError(f"{folder} is no finished run (no run.json); {do}")
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = card["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); train again") from error
    if found != RUN_FORMAT:
        raise RunError(f"{folder} has run format {found}, this m6rec reads {RUN_FORMAT}; use the version that wrote it")
    return card


def data_card(dataset: Dataset) -> dict[str, Any]:
    """Return what names a dataset in every result: name, hash, counts, split and tie rule."""
    manifest = plain(dataset.manifest)
    return {
        "name": dataset.manifest.name,
        "domain": dataset.manifest.domain,
        "hash": dataset.manifest.hash,
        "counts": manifest["counts"],
        "split": manifest["split"],
        "ties": manifest["ties"],
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {name: version(name) for name in PACKAGES}


def _tuned(recipe: Recipe) -> tuple[Backbone, Tuner]:
    tuner = _tuner(recipe)
    return tuner.attach(resolve_backbone(recipe.backbone.name, recipe.backbone.revision)), tuner


def _tuner(recipe: Recipe) -> Any:
    kind, config = plugin("tuner", recipe.tuner)
    return kind(config)


def _check_tuner_is_used(recipe: Recipe) -> None:
    if recipe.tuner["name"] != "none":
        raise ConfigError(
            f"tuner {recipe.tuner['name']!r} would train nothing: item vectors are cached; "
            "set task.item_vectors=step (the tuner learns through the item encoder), or tuner.name=none"
        )


def _check_unclaimed(out: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse to mix two runs, before anything is touched."""
    path = out / "recipe.yaml"
    started = (out / "run.json").is_file() or any((out / "checkpoints").glob("*"))
    if not started or not path.is_file():
        return
    if path.read_text(encoding="utf-8") != dump(recipe):
        raise RunError(f"{out} holds a run of another recipe; give another out=, or remove it")
    if not resume:
        raise RunError(f"{out} holds a run of this recipe; go on with --resume, give another out=, or remove it")


def _claim(out: Path, recipe: Recipe) -> None:
    """Write the resolved recipe into the run folder, which is no finished run from here on."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.json").unlink(missing_ok=True)
    (out / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _read_saved_recipe(folder: Path) -> Recipe:
    try:
        tree = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RunError(f"{folder}/recipe.yaml cannot be read ({error}); train again") from error
    return check_recipe(tree)
