"""One run beside baselines: the same queries, the same candidates, one report.

Knows no command line. The baselines are tuned on validation; the test period is touched once, by everybody.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.assemble import Experiment
from m6rec.baselines import BASELINES
from m6rec.baselines.tuning import Tuning, fit, seeded, tune
from m6rec.config import plain
from m6rec.data.histories import Queries
from m6rec.data.sources.world import World, WorldConfig
from m6rec.data.store import Dataset
from m6rec.errors import ConfigError
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.pairs import evaluate_pairs
from m6rec.evaluation.report import Report
from m6rec.evaluation.result import Evaluation, PairEvaluation
from m6rec.runs import versions
from m6rec.tasks.base import Task
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.retrieval.base import Retriever
from m6rec.tasks.zeroshot.task import ZeroShot, ZeroShotScorer

HeldOut = Literal["valid", "test"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """A report and how its baselines were tuned.

    Args:
        report: all rows.
        tunings: baseline name -> its search.
    """

    report: Report
    tunings: dict[str, Tuning]

    def to_dict(self, experiment: Experiment) -> dict[str, Any]:
        """Return the one object that ``--json`` writes."""
        report = self.report
        ours = next(row for row in report.rows if row.name == report.ours)
        return {
            "metrics": report.to_dict()["rows"][report.ours]["metrics"],
            "protocol": {
                **ours.protocol,
                "split": plain(experiment.dataset.manifest.split),
                "event_ties": experiment.dataset.manifest.ties,
            },
            "seed": experiment.recipe.seed,
            "recipe": plain(experiment.recipe),
            "data": experiment.dataset.manifest.card(),
            "seconds": ours.seconds,
            "versions": versions(),
            "report": report.to_dict(),
            "tuning": {name: tuning.to_dict() for name, tuning in self.tunings.items()},
        }


def compare_run(
    experiment: Experiment,
    split: HeldOut = "test",
    baselines: Sequence[str] = (),
    trials: int | Mapping[str, int] = 1,
    name: str = "ours",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Compared:
    """Evaluate a run and baselines on one held-out split.

    Args:
        experiment: a finished run over its dataset.
        split: what is predicted.
        baselines: names on the baselines shelf.
        trials: settings that each tunable baseline tries on validation, or how many by name; the first is its default.
        name: row name of the run.
        settings: baseline name -> settings other than its defaults, which no search changes.

    Raises:
        UnknownNameError: no such baseline.
        ConfigError: a baseline that cannot do this task.
    """
    _check_baselines(baselines, experiment)
    task, dataset, seed = experiment.task, experiment.dataset, experiment.recipe.seed
    title, oracle = f"{dataset.manifest.name}, {split}", None
    train, valid, held_out = _periods(experiment, split)
    judge: Callable[[Any, Any], Evaluation | PairEvaluation] = evaluate_pairs
    if _judges_pairs(task):
        title = f"{title}, yes or no"
    else:
        rivals = task.rivals(held_out, seed) if isinstance(task, ZeroShot) else None
        judge, oracle = partial(evaluate, candidates=rivals, seed=seed), WorldOracle.of(dataset)
    ours, ceiling = _scorer(experiment, split, name), judge(oracle, held_out) if oracle else None
    search = BaselineSearch(train, valid, trials, settings or {}, seed)
    rows = [judge(scorer, held_out) for scorer in itertools.chain([ours], search.fitted(baselines))]
    return Compared(Report(rows, title=title, ours=name, ceiling=ceiling), search.tunings)


def _judges_pairs(task: Task) -> bool:
    """Whether what is held out are labelled pairs, and not questions to a catalogue."""
    return isinstance(task, Ranking) or (isinstance(task, ZeroShot) and task.config.threshold is not None)


def _scorer(experiment: Experiment, split: HeldOut, name: str) -> Any:
    """Return the run as evaluation calls it."""
    task, backbone = experiment.task, experiment.backbone
    if isinstance(task, Ranking):
        return RankingScorer(task, backbone, split, name)
    if isinstance(task, ZeroShot):
        return ZeroShotScorer(task, backbone, name)
    assert isinstance(task, Retriever)
    return task.scorer(backbone, name)


def _periods(experiment: Experiment, split: HeldOut) -> tuple[Any, Any, Any]:
    """Return what is for training, for validation, and held out: events and queries, or pairs."""
    task: Any = experiment.task
    if _judges_pairs(task):
        return task.pairs("train"), task.pairs("valid"), task.pairs(split)
    histories = experiment.dataset.histories()
    return histories.before("train"), histories.queries("valid"), histories.queries(split)


@dataclass
class BaselineSearch:
    """Tunes and fits baselines on the same training events (or pairs); validation ends trainings and picks settings.

    Args:
        train: training events or judgements.
        valid: validation queries or judgements.
        trials: settings to try, or how many by name; 1 = the default setting, without a search.
        settings: by name, what is set instead of searched.
        seed: of searches and trainings.
        tunings: baseline name -> its search.
    """

    train: Any
    valid: Any
    trials: int | Mapping[str, int]
    settings: Mapping[str, Mapping[str, Any]]
    seed: int
    tunings: dict[str, Tuning] = field(default_factory=dict)

    def fitted(self, names: Sequence[str]) -> Iterator[Any]:
        """Yield the baselines, one at a time."""
        for name in names:
            cls, fixed = BASELINES.load(name), self.settings.get(name, {})
            trials = self.trials if isinstance(self.trials, int) else self.trials.get(name, 1)
            config = cls.Config(**{**seeded(cls.Config, self.seed), **fixed})
            if trials > 1 and getattr(cls, "search_space", None):
                self.tunings[name] = tune(name, self.train, self.valid, trials, self.seed, fixed)
                config = self.tunings[name].best.config
            baseline = cls(config)
            fit(baseline, self.train, self.valid)
            yield baseline


def _check_baselines(names: Sequence[str], experiment: Experiment) -> None:
    """Say what is wrong before anything is evaluated."""
    pairs = _judges_pairs(experiment.task)
    for name in names:
        if hasattr(BASELINES.load(name), "fit_pairs" if pairs else "fit"):
            continue
        if pairs:
            raise ConfigError(f"baseline {name!r} scores catalogues only; with a ranking run use rate, din")
        raise ConfigError(f"baseline {name!r} ranks pairs only; it goes with a ranking run")


def compare_reranked(
    experiment: Experiment, ranker: Experiment, split: HeldOut = "test", depth: int = 50, name: str = "ours"
) -> Report:
    """Order what a retrieval run finds with a ranking run, and compare both orders of the same candidates.

    A target that was not retrieved is a miss for both.

    Args:
        experiment: a finished retrieval run over its dataset.
        ranker: a finished ranking run over the same dataset.
        split: what is predicted.
        depth: how many items are retrieved for each user.
        name: row name of the retrieval run's own order.

    Raises:
        ConfigError: the runs are of other tasks, or of different datasets.
    """
    if not isinstance(experiment.task, Retriever) or not isinstance(ranker.task, Ranking):
        raise ConfigError("expected a retrieval run and a ranking run, in this order")
    if experiment.dataset.manifest.hash != ranker.dataset.manifest.hash:
        raise ConfigError("the two runs were trained on different datasets")
    queries, seed = experiment.dataset.histories().queries(split), experiment.recipe.seed
    scorer = experiment.task.scorer(experiment.backbone, name)
    found = evaluate(scorer, queries, cutoffs=(depth,), seed=seed).lists
    second = RankingScorer(ranker.task, ranker.backbone, split, f"{name} + ranker")
    scorers: tuple[Any, Any] = (scorer, second)
    rows = [evaluate(row, queries, candidates=found, include_targets=False, seed=seed) for row in scorers]
    title = f"{experiment.dataset.manifest.name}, {split}, the order of {depth} retrieved items"
    return Report(rows, title=title, ours=rows[1].name)


class WorldOracle:
    """The sample world's true next-item probabilities: what no model can beat.

    Args:
        dataset: a prepared sample world.
        world: the world that it was made from.
    """

    name = "oracle"

    def __init__(self, dataset: Dataset, world: World) -> None:
        self._oracle = world.oracle()
        places = {key: place for place, key in enumerate(self._oracle.item_keys)}
        self._columns = np.array([places[key] for key in dataset.items["key"][:]])
        self._users = dataset.users["key"]

    @classmethod
    def of(cls, dataset: Dataset) -> "WorldOracle | None":
        """Return the oracle of a prepared sample world, ``None`` for any other dataset."""
        if dataset.manifest.source != World.name:
            return None
        return cls(dataset, World(WorldConfig(**dataset.manifest.source_config)))

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]`` the true distribution of each user's next item."""
        history = queries.history
        ends = history.offsets[queries.users + 1]
        some = ends > history.offsets[queries.users]
        assert history.times is not None
        after = np.where(some, history.times[np.maximum(ends - 1, 0)], -1)
        users = [self._users[int(user)] for user in queries.users]
        return self._oracle.next_item_probabilities(users, after)[:, self._columns]
