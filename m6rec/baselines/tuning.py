"""Re-tune a baseline by a small stated search, so that nobody has to take its settings on trust. It knows no method.

Benches call :func:`tune` with validation data; the winner is then fitted again by the bench, over its own seeds.
"""

import inspect
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from m6rec.baselines import BASELINES
from m6rec.baselines.stopping import mean_ndcg
from m6rec.config import plain
from m6rec.data.histories import Histories, Judgements, Queries
from m6rec.errors import ConfigError
from m6rec.metrics.ranking import auc

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Args:
        config: the whole config.
        value: what it reached on validation.
        seconds: wall time of fit and validation.
        log: how the training went, where there was one (see ``stopping.TrainingLog``).
    """

    config: Any
    value: float
    seconds: float
    log: Any = None


@dataclass(frozen=True)
class Tuning:
    """A search and its outcome.

    Args:
        name: the baseline's.
        metric: what was raised on validation.
        trials: in the order they were run; the first is the default setting.
    """

    name: str
    metric: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the highest validation value (the earliest of equals)."""
        return max(self.trials, key=lambda trial: trial.value)

    def to_dict(self) -> dict[str, Any]:
        """Return the search as plain values, for a report."""
        return {
            "baseline": self.name,
            "metric": f"valid {self.metric}",
            "best": plain(self.best.config),
            "trials": [{"config": plain(t.config), "value": t.value, "log": plain(t.log)} for t in self.trials],
        }


def tune(
    name: str,
    train: Histories | Judgements,
    valid: Queries | Judgements,
    trials: int,
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
) -> Tuning:
    """Try the default setting and ``trials - 1`` others drawn from the baseline's ``search_space``.

    Ranking baselines are fitted on events and judged by NDCG@10 on the validation queries; pair baselines are fitted
    on judgements and judged by AUC. One that trains by epochs also stops on ``valid``.

    Args:
        name: shelf name.
        train: training events or judgements.
        valid: validation queries or judgements; never test ones.
        trials: settings to try; the search ends early when the space is exhausted.
        seed: of the draw, and of every training.
        fixed: fields that are not searched but set, e.g. ``{"max_epochs": 30}``.

    Returns:
        The search; ``.best.config`` is ready for the baseline's constructor. Deterministic but for ``seconds``.

    Raises:
        ConfigError: the baseline has nothing to tune, or ``train`` and ``valid`` are of different kinds.
    """
    if isinstance(train, Judgements) != isinstance(valid, Judgements):
        raise ConfigError("got events with judgements, expected (Histories, Queries) or (Judgements, Judgements)")
    cls = BASELINES.load(name)
    space = {key: values for key, values in cls.search_space.items() if key not in (fixed or {})}
    results: list[Trial] = []
    for setting in _settings(space, trials, seed):
        config = cls.Config(**{**seeded(cls.Config, seed), **(fixed or {}), **setting})
        started = time.perf_counter()
        baseline = cls(config)
        value = _fit_and_judge(baseline, train, valid)
        results.append(Trial(config, value, time.perf_counter() - started, getattr(baseline, "log", None)))
        logger.info("%s trial %d of %d: %.4f with %s", name, len(results), trials, value, setting or "the defaults")
    return Tuning(name, "auc" if isinstance(valid, Judgements) else "ndcg@10", tuple(results))


def _settings(space: Mapping[str, tuple[Any, ...]], trials: int, seed: int) -> list[dict[str, Any]]:
    """Return the empty setting (the defaults), then distinct random ones."""
    rng = np.random.default_rng(seed)
    size = int(np.prod([len(values) for values in space.values()], dtype=np.int64))
    drawn = rng.permutation(size)[: max(0, trials - 1)] if size > 1 else np.empty(0, np.int64)
    settings: list[dict[str, Any]] = [{}]
    for number in drawn:
        places = np.unravel_index(int(number), [len(values) for values in space.values()])
        settings.append({key: values[place] for (key, values), place in zip(space.items(), places, strict=True)})
    return settings


def seeded(config: type, seed: int) -> dict[str, Any]:
    """Return the config's ``seed`` setting, nothing where it has none."""
    return {"seed": seed} if "seed" in getattr(config, "__dataclass_fields__", {}) else {}


def fit(baseline: Any, train: Histories | Judgements, valid: Queries | Judgements) -> None:
    """Fit on events or pairs; a baseline that trains by epochs also takes validation, to stop on."""
    method = baseline.fit_pairs if isinstance(train, Judgements) else baseline.fit
    if "valid" in inspect.signature(method).parameters:
        method(train, valid)
    else:
        method(train)


def _fit_and_judge(baseline: Any, train: Histories | Judgements, valid: Queries | Judgements) -> float:
    fit(baseline, train, valid)
    if isinstance(valid, Judgements):
        return auc(valid.labels, baseline.score_pairs(valid))
    return mean_ndcg(baseline.score, valid)
