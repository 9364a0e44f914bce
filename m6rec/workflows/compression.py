"""From a run to a cheaper one: opens the run, hands it to a compressor, writes the card. It knows no method."""

import copy
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from m6rec.assemble import Experiment, learnt, open_experiment, train_run
from m6rec.backbones.base import Backbone
from m6rec.baselines.base import PairScorer
from m6rec.compressors import COMPRESSORS
from m6rec.compressors.base import Subject
from m6rec.config import assign, parse, plain
from m6rec.data.histories import Judgements
from m6rec.distillation.relations import RelationConfig, RelationTask
from m6rec.errors import ConfigError, RunError, UnknownNameError
from m6rec.evaluation.pairs import evaluate_pairs
from m6rec.recipe import check_recipe
from m6rec.runs import CARD_FILE, versions
from m6rec.tasks.base import Task
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.tasks.ranking.task import Answer, Ranking
from m6rec.validation import validator
from m6rec.workflows.distilling import taught

COMPRESSION_FILE = "compression.json"
# What a compressor leaves to the recipe when it trains.
RECIPE_PARTS = ("training", "tuner", "task", "exits", "distillation", "seed")
EDGE = "edge"
# Validation pairs that settle what a compressed ranking run is worth, at every depth.
JUDGED_PAIRS = 500
# The best weights by validation may be those from before a ramp, or before an exit has learnt anything.
TO_THE_END = {"evaluate_every": None, "evaluate_first": False, "select_on": None, "patience": None}
Wrap = Callable[[Task, Backbone], Task]
logger = logging.getLogger(__name__)


def compress_run(folder: str | Path, method: str, words: Sequence[str]) -> dict[str, Any]:
    """Compress a run by one method and write ``compression.json`` beside what came out.

    Args:
        folder: the run's.
        method: name on the compressors shelf; or of a recipe of several (``edge``, or the path of a YAML file), whose
            finished stages are not done again.
        words: ``out=FOLDER``, ``data=FOLDER`` where the dataset has moved, settings of the method (of a recipe:
            ``share.groups=2``), and of the run's recipe where the method trains (``training.max_steps=200``;
            ``distillation.source=elastic``: what trains is also taught by the run, in processes of its own).

    Returns:
        The card.

    Raises:
        UnknownNameError: no such method.
        ConfigError: settings that neither the method nor the recipe has, or no ``out``.
        RunError: no such run, or one that cannot be compressed so.
    """
    tree = assign({}, words)
    out, data = tree.pop("out", None), tree.pop("data", None)
    if out is None:
        raise ConfigError(f"missing out=FOLDER: m6rec compress {folder} {method} out=RUN2")
    if Path(out).resolve() == Path(folder).resolve():
        raise ConfigError(f"out: got the run itself ({out}), expected another folder")
    if isinstance(tree.get("distillation"), dict):
        tree["distillation"].setdefault("teacher", str(folder))
    stages = read_stages(method)
    if stages is None:
        return _compress(Path(folder), method, tree, Path(out), data)
    return _compress_in_stages(Path(folder), stages, tree, Path(out), data)


def read_stages(method: str) -> list[dict[str, Any]] | None:
    """Return the stages of a recipe of several methods, or ``None`` where ``method`` is one method.

    Raises:
        UnknownNameError: neither a method nor such a recipe.
        ConfigError: a recipe that is no list of methods with settings.
    """
    if method in COMPRESSORS:
        return None
    shipped = resources.files("m6rec.recipes").joinpath(f"{method}.yaml")
    path = Path(method) if Path(method).suffix in (".yaml", ".yml") else shipped
    if not path.is_file():
        raise UnknownNameError("compressor", method, [*COMPRESSORS, EDGE])
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    stages = tree.get("stages") if isinstance(tree, dict) else None
    if not stages or not all(isinstance(stage, dict) and "method" in stage for stage in stages):
        raise ConfigError(f"{method}: got no `stages`, expected a list of mappings with `method` and its settings")
    return list(stages)


def _compress_in_stages(
    folder: Path, stages: Sequence[Mapping[str, Any]], tree: Mapping[str, Any], out: Path, data: str | None
) -> dict[str, Any]:
    """Hand a run from stage to stage; the last one's result lies in ``out``, what is done is not done again."""
    own = {stage["method"] for stage in stages}
    if strangers := set(tree) - own - set(RECIPE_PARTS):
        raise UnknownNameError("setting", sorted(strangers)[0], [*own, *RECIPE_PARTS])
    shared, cards = {name: value for name, value in tree.items() if name in RECIPE_PARTS}, []
    for number, stage in enumerate(stages, start=1):
        method = stage["method"]
        place = out if number == len(stages) else out / "stages" / f"{number}-{method}"
        settings = merged({name: value for name, value in stage.items() if name != "method"}, tree.get(method, {}))
        if (place / COMPRESSION_FILE).is_file():
            cards.append(json.loads((place / COMPRESSION_FILE).read_text(encoding="utf-8")))
        else:
            logger.info("stage %d of %d: %s", number, len(stages), method)
            cards.append(_compress(folder, method, merged(settings, shared), place, data))
        folder = place
    return {**cards[-1], "stages": cards[:-1]}


def _compress(folder: Path, method: str, tree: Mapping[str, Any], out: Path, data: str | None) -> dict[str, Any]:
    kind = COMPRESSORS.load(method)
    changes = {name: tree[name] for name in RECIPE_PARTS if name in tree}
    own = {name: value for name, value in tree.items() if name not in RECIPE_PARTS}
    compressor = kind(parse(kind.Config, own, method))
    subject = subject_of(open_experiment(folder, data), folder, changes)
    told = compressor.compress(subject, out)
    card = {"method": method, "settings": plain(compressor.config), "of": str(folder), **told, "versions": versions()}
    (out / COMPRESSION_FILE).write_text(json.dumps(_known(card), indent=1, default=float), encoding="utf-8")
    return dict(_known(card))


def _known(value: Any) -> Any:
    """Return a card's values with null for a figure that could not be had: NaN is no JSON."""
    if isinstance(value, dict):
        return {name: _known(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def subject_of(experiment: Experiment, folder: Path, always: Mapping[str, Any] | None = None) -> Subject:
    """Return an opened run as compressors want it.

    Args:
        experiment: the run over its dataset.
        folder: the run's.
        always: settings of the recipe that every retraining takes.
    """
    recipe = plain(experiment.recipe)

    def retrain(out: Path, changes: Mapping[str, Any], wrap: Wrap | None = None, distil: bool = False) -> Subject:
        tree = merged(merged(recipe, {"training": TO_THE_END, **changes}), {**(always or {}), "out": str(out)})
        until_done = ExitStack()

        def wrapped(fresh: Experiment) -> Task:
            task = learnt(fresh) if fresh.recipe.distillation is None else taught(fresh, until_done)
            task = RelationTask(task, experiment.backbone, RelationConfig()) if distil else task
            return task if wrap is None else wrap(task, fresh.backbone)

        if not (out / CARD_FILE).is_file():
            with until_done:
                _, result = train_run(check_recipe(tree), resume=True, wrap=wrapped)
            if result.interrupted:
                raise RunError(f"{out}: interrupted; run the same command again to go on")
        return subject_of(open_experiment(out, experiment.recipe.data), out, always)

    def measure(backbone: Backbone) -> dict[str, float]:
        if isinstance(experiment.task, Ranking):
            return _on_some_pairs(experiment.task, RankingScorer(experiment.task, backbone, "valid"))
        validate = validator(experiment.task, backbone, experiment.dataset, experiment.recipe.seed)
        return {} if validate is None else validate(0)

    def judge(answer: Answer) -> dict[str, float]:
        assert isinstance(experiment.task, Ranking)
        return _on_some_pairs(experiment.task, _Answered(experiment.task, answer))

    return Subject(folder, recipe, experiment.backbone, experiment.task, retrain, measure, judge)


def _on_some_pairs(task: Ranking, scorer: PairScorer) -> dict[str, float]:
    """Return a scorer's figures on a seeded sample of the validation pairs; none where nothing is held out."""
    pairs = task.pairs("valid")
    chosen = np.sort(np.random.default_rng(0).permutation(len(pairs))[:JUDGED_PAIRS])
    return evaluate_pairs(scorer, pairs.take(chosen)).means() if len(pairs) else {}


class _Answered:
    """A ranking task that something other than its backbone answers.

    Args:
        task: over its dataset.
        answer: tree, numbers -> probabilities.
    """

    name = "compressed"

    def __init__(self, task: Ranking, answer: Answer) -> None:
        self.task, self.answer = task, answer

    def score_pairs(self, pairs: Judgements) -> NDArray[np.float32]:
        """Return ``[num_pairs]`` probabilities."""
        return self.task.score_trees(pairs, "valid", self.answer)


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others written over them; a plug-in of another name keeps none of its predecessor's.

    >>> merged({"tuner": {"name": "lora", "r": 8}, "seed": 0}, {"tuner": {"name": "full"}})
    {'tuner': {'name': 'full'}, 'seed': 0}
    """
    result = copy.deepcopy(dict(tree))
    for name, value in changes.items():
        own = result.get(name)
        if isinstance(value, Mapping) and isinstance(own, Mapping) and value.get("name") in (None, own.get("name")):
            result[name] = merged(own, value)
        else:
            result[name] = copy.deepcopy(value)
    return result
