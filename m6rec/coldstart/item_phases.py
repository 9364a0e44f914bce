"""New items in phases: which are learnt from, and what is known of a held-out one: nothing, then its first judgements.

The query set is the same in every phase, and no held-out item is ever met in training. A split by items, not by time:
training holds judgements of other items that came later than a query's. Knows no predictor and no text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.coldstart.episodes import Episodes
from m6rec.errors import ConfigError, DataError
from m6rec.metrics.ranking import auc, uauc

Phase = Literal["cold", "warm-a", "warm-b", "warm-c"]
Part = Literal["train", "valid", "test"]
PHASES: tuple[Phase, ...] = ("cold", "warm-a", "warm-b", "warm-c")
METRICS = ("auc", "within_item_auc")


@dataclass(frozen=True)
class Rows:
    """Judgements in time order.

    Args:
        users: ``[rows]`` int64 user ids.
        items: ``[rows]`` int64 item ids.
        values: ``[rows]`` float32 ratings, or the labels again where there are none.
        labels: ``[rows]`` float32, 0 or 1.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, which: NDArray[np.integer]) -> "Rows":
        """Return the rows numbered ``which``, in that order."""
        return Rows(**{name: column[which] for name, column in vars(self).items()})

    @classmethod
    def of(cls, episodes: Episodes) -> "Rows":
        """Return everybody's judgements.

        Raises:
            DataError: nobody knows when they were made.
        """
        if episodes.times is None:
            raise DataError(
                "got a log without times, expected them: the first judgements of a new item are its warm-up"
            )
        order = np.argsort(episodes.times, kind="stable")
        users = episodes.users[episodes.rows]
        return cls(users[order], episodes.items[order], episodes.values[order], episodes.labels[order])


@dataclass(frozen=True)
class PhaseConfig:
    """How items are divided and a held-out item's judgements cut; all change results."""

    shots: int = 5
    """Judgements that each of the phases warm-a, warm-b and warm-c adds: an item's earliest ones, in time order."""
    min_queries: int = 5
    """Fewest judgements of a held-out item behind the warm-up."""
    most: int | None = None
    """Most judgements of a held-out item: popular ones are learnt from, as in the published split; null = any."""
    shares: tuple[float, float, float] = (0.5, 0.15, 0.35)
    """Of the items with enough judgements: learnt from, chosen by, tested on. All others are learnt from."""

    def __post_init__(self) -> None:
        if self.shots < 1 or self.min_queries < 1:
            raise ConfigError(f"got shots {self.shots} and min_queries {self.min_queries}, expected 1 or more")
        if len(self.shares) != 3 or min(self.shares) < 0 or not 0.999 < sum(self.shares) < 1.001:
            raise ConfigError(f"shares: got {self.shares}, expected three shares that sum to 1")

    @property
    def fewest(self) -> int:
        """Fewest judgements of a held-out item."""
        return (len(PHASES) - 1) * self.shots + self.min_queries


@dataclass(frozen=True)
class ItemPhases:
    """Judgements, and what each of them is for.

    Args:
        rows: all of them.
        shots: judgements a phase.
        items: the items of each part, ascending; no item is in two.
        ranks: ``[rows]`` how many earlier judgements the row's item has.
        parts: ``[rows]`` part of the row's item: 0 train, 1 valid, 2 test.

    Source: EmerG's public notebooks (LARS-research/EmerG @3c8f42f): the first three times K rows of an item are its
        phases, the rest its query set.
    Differs: a share of the items is kept to choose by; held-out items may be popular ones too (``most``), so that what
        is new is not also rare.
    """

    rows: Rows
    shots: int
    items: Mapping[Part, NDArray[np.int64]]
    ranks: NDArray[np.int64]
    parts: NDArray[np.int8]

    @classmethod
    def of(cls, rows: Rows, config: PhaseConfig, seed: int) -> "ItemPhases":
        """Divide the items.

        Raises:
            DataError: too few items with enough judgements to have one to choose by and one to test on.
        """
        counts = np.bincount(rows.items)
        enough = np.flatnonzero((counts >= config.fewest) & (counts <= (config.most or counts.max(initial=0))))
        order = np.random.default_rng(seed).permutation(enough)
        held = [max(1, round(share * len(enough))) for share in config.shares[1:]]
        if len(enough) < sum(held):
            raise DataError(
                f"got {len(enough)} items with {config.fewest} judgements or more, expected at least {sum(held)}; set "
                "fewer shots or min_queries"
            )
        valid, test = np.sort(order[: held[0]]), np.sort(order[held[0] : sum(held)])
        part = np.zeros(len(counts), dtype=np.int8)
        part[valid], part[test] = 1, 2
        items: dict[Part, NDArray[np.int64]] = {"train": np.flatnonzero((part == 0) & (counts > 0))}
        items |= {"valid": valid, "test": test}
        return cls(rows, config.shots, items, earlier(rows.items), part[rows.items])

    @property
    def train(self) -> NDArray[np.int64]:
        """Row numbers of the items that are learnt from."""
        return np.flatnonzero(self.parts == 0)

    def known(self, part: Part, phase: Phase) -> NDArray[np.int64]:
        """Return the row numbers that are known of the items of a part in a phase."""
        return self._where(part, self.ranks < self.shots * PHASES.index(phase))

    def queries(self, part: Part) -> NDArray[np.int64]:
        """Return the row numbers that are asked for, the same in every phase and never known in one."""
        return self._where(part, self.ranks >= self.shots * (len(PHASES) - 1))

    def _where(self, part: Part, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.flatnonzero((self.parts == ("train", "valid", "test").index(part)) & chosen)

    def judge(
        self, part: Part, scores: NDArray[np.floating], which: NDArray[np.integer] | None = None
    ) -> dict[str, float]:
        """Return every metric of a score for each query; NaN where all labels are equal.

        Pooled AUC rises with whatever tells one item's level from another's; only within an item the scores have to
        tell who likes it.

        Args:
            part: whose queries.
            scores: one a query.
            which: the queries that have scores; default: all.
        """
        asked = self.rows.take(self.queries(part))
        asked = asked if which is None else asked.take(which)
        return {
            "auc": auc(asked.labels, scores),
            "within_item_auc": uauc(asked.items, asked.labels, scores),
        }


def earlier(names: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return for each entry how many equal ones stand before it.

    >>> earlier(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(names, kind="stable")
    ordered = names[order]
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[order] = np.arange(len(names)) - np.searchsorted(ordered, ordered)
    return ranks
