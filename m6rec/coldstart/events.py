"""Judged items of a batch of users as tensors, and what is known of each item without its user. Knows no predictor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.coldstart.closed_form import ClosedForm
from m6rec.coldstart.episodes import Episodes
from m6rec.coldstart.factors import Factors


@dataclass(frozen=True)
class Rates:
    """What an item is worth to anybody: the closed form's level, over the users that are learnt from.

    Values are in standard units from here on: ``(value - mean) / scale``.

    Args:
        mean: of all values.
        scale: their standard deviation.
        form: fitted on the users' values in standard units.
        sums: ``[num_items]`` sum of what mean and users leave of an item's values.
        counts: ``[num_items]`` how many they are.
        priors: ``[num_items]`` what attributes say of an item.
    """

    mean: float
    scale: float
    form: ClosedForm
    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
    priors: NDArray[np.float64]

    @classmethod
    def of(cls, train: Episodes, attributes: NDArray[np.floating]) -> "Rates":
        """Fit the closed form.

        Args:
            train: users that are learnt from.
            attributes: ``[num_items, columns]``.
        """
        mean, scale = float(train.values.mean()), max(float(train.values.std()), 1e-6)
        values, size = train.standard(mean, scale), len(attributes)
        form = ClosedForm.fit(train.rows, train.items, values, len(train), attributes)
        left = values - form.mean - form.user_levels()[train.rows]
        sums = np.bincount(train.items, left, minlength=size).astype(np.float64)
        counts = np.bincount(train.items, minlength=size).astype(np.float64)
        return cls(mean, scale, form, sums, counts, form.priors(attributes))

    def left(self, train: Episodes) -> NDArray[np.float64]:
        """Return ``[events]`` what the levels of user and item leave of the judgements that were learnt from."""
        expected = self.items[train.items] + self.form.user_levels()[train.rows]
        left: NDArray[np.float64] = train.standard(self.mean, self.scale) - expected
        return left

    @property
    def items(self) -> NDArray[np.float64]:
        """``[num_items]`` each item's level; what its attributes say where nobody judged it."""
        return self._shrunk(self.sums, self.counts, self.priors)

    def without_own(self, train: Episodes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each event's item level and count as users outside the event's own fold have them.

        A user who is learnt from is part of the levels: with her own judgement in them, every item would give it away.
        And so would an item without her alone: of two users of it, the one who said yes sees the lower level. In a
        fold all see the same.
        """
        left = train.standard(self.mean, self.scale) - self.form.mean - self.form.user_levels()[train.rows]
        levels, counts = np.empty(len(left)), np.empty(len(left))
        for inside in train.folds():
            others, items = ~inside, train.items[inside]
            sums = np.bincount(train.items[others], left[others], minlength=len(self.counts)).astype(np.float64)
            number = np.bincount(train.items[others], minlength=len(self.counts)).astype(np.float64)
            levels[inside] = self._shrunk(sums[items], number[items], self.priors[items])
            counts[inside] = number[items]
        return levels, counts

    def _shrunk(
        self, sums: NDArray[np.float64], counts: NDArray[np.float64], priors: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        strength = self.form.strengths.item
        levels: NDArray[np.float64] = self.form.mean + (sums + strength * priors) / (strength + counts)
        return levels


@dataclass(frozen=True)
class Events:
    """Judged items of some users, padded.

    Args:
        places: ``[users, events]`` item; 0 where padded.
        base: ``[users, events]`` what the item is worth to anybody, in standard units.
        counts: ``[users, events]`` logarithm of one more than the number of its judgements.
        taste: ``[users, events, dim]`` where the item stands along the directions of taste.
        values: ``[users, events]`` in standard units; 0 where unknown or padded.
        keep: ``[users, events]`` ``False`` where padded.
    """

    places: Int[Tensor, "users events"]
    base: Float[Tensor, "users events"]
    counts: Float[Tensor, "users events"]
    taste: Float[Tensor, "users events dim"]
    values: Float[Tensor, "users events"]
    keep: Bool[Tensor, "users events"]

    @property
    def means(self) -> Float[Tensor, "users events 2"]:
        """What the users that are learnt from say of each item, as features of order one."""
        return torch.stack([self.base, self.counts / 5], dim=-1)

    @property
    def num_kept(self) -> Float[Tensor, " users"]:
        """Judged items of each user."""
        return self.keep.sum(1).to(self.base.dtype)

    def to(self, device: torch.device | str) -> "Events":
        """Return the events on ``device``."""
        return Events(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class ColdBatch:
    """Users with what is known of them and what is asked.

    Args:
        support: known events.
        query: asked ones; their values are targets.
        profiles: ``[users, columns]`` attributes.
    """

    support: Events
    query: Events
    profiles: Float[Tensor, "users columns"]

    def to(self, device: torch.device | str) -> "ColdBatch":
        """Return the batch on ``device``."""
        return ColdBatch(self.support.to(device), self.query.to(device), self.profiles.to(device))


@dataclass(frozen=True)
class ItemTable:
    """What predictors read of items.

    Args:
        texts: ``[items, layers, width]`` whitened states of the backbone's upper layers; the last one is its output.
        attributes: ``[items, columns]`` 0 or 1.
    """

    texts: Float[Tensor, "items layers width"]
    attributes: Float[Tensor, "items columns"]

    @property
    def width(self) -> int:
        """Numbers of one item's features."""
        return self.texts.shape[2] + self.attributes.shape[1]

    def features(self, places: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """Return output text vector and attributes of items."""
        return torch.cat([self.texts[places, -1], self.attributes[places]], dim=-1)

    def and_also(self, more: "ItemTable") -> "ItemTable":
        """Return this table with ``more`` items behind it."""
        return ItemTable(torch.cat([self.texts, more.texts]), torch.cat([self.attributes, more.attributes]))


class Padder:
    """Cuts events of users into padded tensors.

    Args:
        episodes: of users that are learnt from (with ``own`` left out of the means), or of others.
        rates: fitted on users that are learnt from.
        factors: the same.
        own: whether ``episodes`` are the ones that ``rates`` were fitted on.
    """

    def __init__(self, episodes: Episodes, rates: Rates, factors: Factors, own: bool = False) -> None:
        self.episodes, items = episodes, episodes.items
        if own:
            base, counts = rates.without_own(episodes)
            taste = factors.without_own(episodes.folds(), episodes.rows, items, rates.left(episodes))
        else:
            base, counts, taste = rates.items[items], rates.counts[items], factors.items()[items]
        self._columns = {
            "places": torch.from_numpy(episodes.items),
            "base": torch.from_numpy(base.astype(np.float32)),
            "counts": torch.from_numpy(np.log1p(counts).astype(np.float32)),
            "taste": torch.from_numpy(taste.astype(np.float32)),
            "values": torch.from_numpy(episodes.standard(rates.mean, rates.scale).astype(np.float32)),
        }

    def __call__(self, which: Sequence[NDArray[np.int64]]) -> Events:
        """Return the events with the numbers ``which``, one row a user."""
        width = max([1, *map(len, which)])
        numbers = torch.zeros(len(which), width, dtype=torch.long)
        keep = torch.zeros(len(which), width, dtype=torch.bool)
        for row, events in enumerate(which):
            numbers[row, : len(events)] = torch.from_numpy(events)
            keep[row, : len(events)] = True
        columns = {name: _where(keep, column[numbers]) for name, column in self._columns.items()}
        return Events(**columns, keep=keep)

    def of(self, parts: Sequence[slice]) -> Events:
        """Return stretches of events, one row a user."""
        return self([np.arange(part.start, part.stop) for part in parts])


def _where(keep: Tensor, values: Tensor) -> Tensor:
    return values.masked_fill(~(keep if values.dim() == 2 else keep[..., None]), 0)


def first(events: Events, size: int) -> Events:
    """Return each user's first ``size`` events."""
    size = min(size, events.keep.shape[1])
    cut = {name: value[:, : max(1, size)] for name, value in vars(events).items()}
    return Events(**cut) if size else replace(Events(**cut), keep=torch.zeros_like(cut["keep"]))
