"""One run beside baselines: the same queries, the same candidates, one report.

Knows no command line. The baselines are tuned on validation; the test period is touched once, by everybody.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.assemble import Experiment, data_card, versions
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
from m6rec.tasks.ranking import Ranking, RankingScorer
from m6rec.tasks.retrieval import Retrieval
from m6rec.tasks.retrieval_data import RetrievalScorer

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
            "data": data_card(experiment.dataset),
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
) -> Compared:
    """Evaluate a run and baselines on one held-out split.

    Args:
        experiment: a finished run over its dataset.
        split: what is predicted.
        baselines: names on the baselines shelf.
        trials: settings that each tunable baseline tries on validation, or how many by name; the first is its default.
        name: row name of the run.

    Raises:
        UnknownNameError: no such baseline.
        ConfigError: a baseline that cannot do this task.
    """
    _check_baselines(baselines, experiment)
    if isinstance(experiment.task, Ranking):
        return _compare_pairs(experiment, experiment.task, split, baselines, trials, name)
    assert isinstance(experiment.task, Retrieval)
    dataset, seed = experiment.dataset, experiment.recipe.seed
    histories = dataset.histories()
    queries, train = histories.queries(split), histories.before("train")
    rows = [evaluate(RetrievalScorer(experiment.task, experiment.backbone, name), queries, seed=seed)]
    tunings: dict[str, Tuning] = {}
    for baseline_name in baselines:
        baseline, tuning = fit_baseline(
            baseline_name, train, histories.queries("valid"), _trials(trials, baseline_name), seed
        )
        rows.append(evaluate(baseline, queries, seed=seed))
        tunings.update({baseline_name: tuning} if tuning else {})
    oracle = WorldOracle.of(dataset)
    ceiling = evaluate(oracle, queries, seed=seed) if oracle else None
    return Compared(Report(rows, title=f"{dataset.manifest.name}, {split}", ours=name, ceiling=ceiling), tunings)


def fit_baseline(name: str, train: Any, valid: Any, trials: int, seed: int) -> tuple[Any, Tuning | None]:
    """Tune and fit one baseline on training events (or pairs); validation ends training and picks settings.

    Args:
        name: on the baselines shelf.
        train: training events or judgements.
        valid: validation queries or judgements.
        trials: settings to try; 1 = the default setting, without a search.
        seed: of search and training.
    """
    cls = BASELINES.load(name)
    tuning = tune(name, train, valid, trials, seed) if trials > 1 and getattr(cls, "search_space", None) else None
    baseline = cls(tuning.best.config if tuning else cls.Config(**seeded(cls.Config, seed)))
    fit(baseline, train, valid)
    return baseline, tuning


def _check_baselines(names: Sequence[str], experiment: Experiment) -> None:
    """Say what is wrong before anything is evaluated."""
    pairs = isinstance(experiment.task, Ranking)
    for name in names:
        if hasattr(BASELINES.load(name), "fit_pairs" if pairs else "fit"):
            continue
        if pairs:
            raise ConfigError(f"baseline {name!r} scores catalogues only; with a ranking run use rate, din")
        raise ConfigError(f"baseline {name!r} ranks pairs only; it goes with a ranking run")


def _trials(trials: int | Mapping[str, int], name: str) -> int:
    return trials if isinstance(trials, int) else trials.get(name, 1)


def _compare_pairs(
    experiment: Experiment,
    task: Ranking,
    split: HeldOut,
    baselines: Sequence[str],
    trials: int | Mapping[str, int],
    name: str,
) -> Compared:
    seed = experiment.recipe.seed
    train, valid, held_out = task.pairs("train"), task.pairs("valid"), task.pairs(split)
    rows = [evaluate_pairs(RankingScorer(task, experiment.backbone, split, name), held_out)]
    tunings: dict[str, Tuning] = {}
    for baseline_name in baselines:
        baseline, tuning = fit_baseline(baseline_name, train, valid, _trials(trials, baseline_name), seed)
        rows.append(evaluate_pairs(baseline, held_out))
        tunings.update({baseline_name: tuning} if tuning else {})
    title = f"{experiment.dataset.manifest.name}, {split}, yes or no"
    return Compared(Report(rows, title=title, ours=name), tunings)


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
    if not isinstance(experiment.task, Retrieval) or not isinstance(ranker.task, Ranking):
        raise ConfigError("expected a retrieval run and a ranking run, in this order")
    if experiment.dataset.manifest.hash != ranker.dataset.manifest.hash:
        raise ConfigError("the two runs were trained on different datasets")
    queries, seed = experiment.dataset.histories().queries(split), experiment.recipe.seed
    scorer = RetrievalScorer(experiment.task, experiment.backbone, name)
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
