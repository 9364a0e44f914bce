"""From a run to a cheaper one: opens the run, hands it to a compressor, writes the card. It knows no method."""

import copy
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from m6rec.assemble import Experiment, learnt, open_experiment, train_run, validator, versions
from m6rec.backbones.base import Backbone
from m6rec.compressors import COMPRESSORS
from m6rec.compressors.base import Subject
from m6rec.config import assign, parse, plain
from m6rec.distillation.relations import RelationConfig, RelationTask
from m6rec.errors import ConfigError, RunError
from m6rec.recipe import check_recipe
from m6rec.runs import CARD_FILE
from m6rec.tasks.base import Task

COMPRESSION_FILE = "compression.json"
# What a compressor leaves to the recipe when it trains.
RECIPE_PARTS = ("training", "tuner", "task", "seed")
# The best weights by validation may be those from before a ramp, or before an exit has learnt anything.
TO_THE_END = {"evaluate_every": None, "evaluate_first": False, "select_on": None, "patience": None}
Wrap = Callable[[Task, Backbone], Task]
logger = logging.getLogger(__name__)


def compress_run(folder: str | Path, method: str, words: Sequence[str]) -> dict[str, Any]:
    """Compress a run by one method and write ``compression.json`` beside what came out.

    Args:
        folder: the run's.
        method: name on the compressors shelf.
        words: ``out=FOLDER``, ``data=FOLDER`` where the dataset has moved, settings of the method, and of the recipe
            where the method trains (``training.max_steps=200``).

    Returns:
        The card.

    Raises:
        UnknownNameError: no such method.
        ConfigError: settings that neither the method nor the recipe has, or no ``out``.
        RunError: no such run, or one that cannot be compressed so.
    """
    kind = COMPRESSORS.load(method)
    tree = assign({}, words)
    out, data = tree.pop("out", None), tree.pop("data", None)
    if out is None:
        raise ConfigError(f"missing out=FOLDER: m6rec compress {folder} {method} out=RUN2")
    if Path(out).resolve() == Path(folder).resolve():
        raise ConfigError(f"out: got the run itself ({out}), expected another folder")
    changes = {name: tree.pop(name) for name in RECIPE_PARTS if name in tree}
    compressor = kind(parse(kind.Config, tree, method))
    subject = subject_of(open_experiment(folder, data), Path(folder), changes)
    told = compressor.compress(subject, Path(out))
    card = {"method": method, "settings": plain(compressor.config), "of": str(folder), **told, "versions": versions()}
    (Path(out) / COMPRESSION_FILE).write_text(json.dumps(_known(card), indent=1, default=float), encoding="utf-8")
    return _known(card)


def _known(value: Any) -> Any:
    """Return a card's values with null for a figure that could not be had: NaN is no JSON."""
    if isinstance(value, dict):
        return {name: _known(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def subject_of(experiment: Experiment, folder: Path, changes: Mapping[str, Any] | None = None) -> Subject:
    """Return an opened run as compressors want it.

    Args:
        experiment: the run over its dataset.
        folder: the run's.
        changes: settings of the recipe that every retraining takes.
    """
    recipe = plain(experiment.recipe)

    def retrain(out: Path, own: Mapping[str, Any], wrap: Wrap | None = None, distil: bool = False) -> Subject:
        tree = merged(merged(recipe, {"training": TO_THE_END, **own}), {**(changes or {}), "out": str(out)})

        def wrapped(fresh: Experiment) -> Task:
            task = learnt(fresh)
            task = RelationTask(task, experiment.backbone, RelationConfig()) if distil else task
            return task if wrap is None else wrap(task, fresh.backbone)

        if not (out / CARD_FILE).is_file():
            _, result = train_run(check_recipe(tree), resume=True, wrap=wrapped)
            if result.interrupted:
                raise RunError(f"{out}: interrupted; run the same command again to go on")
        return subject_of(open_experiment(out, experiment.recipe.data), out, changes)

    def measure(backbone: Backbone) -> dict[str, float]:
        experiment.backbone = backbone
        judge = validator(experiment)
        if judge is None:
            logger.warning("%s holds nothing out for validation: no quality is told", experiment.recipe.data)
        return {} if judge is None else judge(0)

    return Subject(folder, recipe, experiment.backbone, experiment.task, retrain, measure)


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others written over them; a plug-in of another name keeps none of its predecessor's.

    >>> merged({"tuner": {"name": "lora", "r": 8}, "seed": 0}, {"tuner": {"name": "full"}})
    {'tuner': {'name': 'full'}, 'seed': 0}
    """
    result = copy.deepcopy(dict(tree))
    for name, value in changes.items():
        own = result.get(name)
        other = (
            isinstance(value, Mapping) and "name" in value and "name" in (own or {}) and value["name"] != own["name"]
        )
        if isinstance(value, Mapping) and isinstance(own, Mapping) and not other:
            result[name] = merged(own, value)
        else:
            result[name] = copy.deepcopy(value)
    return result
