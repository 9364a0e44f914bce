"""Items as learning tasks: judgements of many items as padded tensors, with what is known of each pair beforehand.

What a training row gives its own user (level, taste) is taken out of the row again: with her own judgement in them,
every one would give itself away. Knows no predictor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.coldstart.closed_form import ClosedForm, Strengths
from m6rec.coldstart.item_phases import ItemPhases, Part, Phase

TASTE_STRENGTH = 5.0
"""Judgements that pull a user's taste to none."""


@dataclass(frozen=True)
class Facts:
    """What is known of all items before anybody judged them.

    Args:
        attributes: ``[items, columns]`` 0 or 1; a value that no column stands for is nowhere.
        fields: columns of each attribute field (genres, year, ...), by name.
        texts: ``[items, width]`` of a frozen backbone, about one in size; ``None`` = nobody reads. An item without
            words is zeros.
    """

    attributes: Float[Tensor, "items columns"]
    fields: dict[str, Int[Tensor, " some"]]
    texts: Float[Tensor, "items width"] | None = None

    @classmethod
    def of(
        cls,
        attributes: Float[Tensor, "items columns"],
        names: Sequence[str],
        texts: Float[Tensor, "items width"] | None = None,
    ) -> "Facts":
        """Return facts from ``field=value`` columns.

        >>> sorted(Facts.of(torch.zeros(1, 3), ["genre=war", "genre=drama", "year=1994"]).fields)
        ['genre', 'year']
        """
        owners = [name.partition("=")[0] for name in names]
        fields = {name: torch.tensor([n for n, owner in enumerate(owners) if owner == name]) for name in owners}
        return cls(attributes, fields, texts)

    def by_text(self) -> "Facts":
        """Return facts of which a predictor reads the text alone; a closed form still reads the attributes."""
        return replace(self, fields={})

    def shuffled(self, seed: int) -> "Facts":
        """Return facts in which every item has another one's text: what is left is no text at all."""
        assert self.texts is not None
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self.texts)))
        return replace(self, texts=self.texts[order])


@dataclass(frozen=True)
class ItemTasks:
    """Judgements of some items, one item a row.

    Args:
        items: ``[items]`` item ids.
        users: ``[items, judgements]`` user ids; 0 where padded.
        labels: ``[items, judgements]`` 0 or 1.
        keep: ``[items, judgements]`` ``False`` where padded.
        expected: ``[items, judgements, 2]`` what the closed form expects of the value, and of the label, in standard
            units of each.
        taste: ``[items, judgements, width]`` what the user likes, as a mean of texts; width 0 where nobody reads.
    """

    items: Int[Tensor, " items"]
    users: Int[Tensor, "items judgements"]
    labels: Float[Tensor, "items judgements"]
    keep: Bool[Tensor, "items judgements"]
    expected: Float[Tensor, "items judgements 2"]
    taste: Float[Tensor, "items judgements width"]

    def mean(self, losses: Float[Tensor, "items judgements"]) -> Float[Tensor, " items"]:
        """Return each item's mean over its judgements; 0 where it has none."""
        return (losses * self.keep).sum(1) / self.keep.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Expectation:
    """A closed form of one kind of numbers (ratings, or labels), ready for any rows.

    Args:
        closed: fitted on the items that are learnt from.
        scale: standard deviation of the numbers.
        priors: ``[items]`` levels before any judgement.
        user_levels: ``[rows]`` the level of each row's user, without the row itself where it was learnt from.
        left: ``[rows]`` what mean and user leave.
        surprise: ``[rows]`` what mean, user and item leave, all that was learnt from known.
    """

    closed: ClosedForm
    scale: float
    priors: Float[Tensor, " items"]
    user_levels: Float[Tensor, " rows"]
    left: Float[Tensor, " rows"]
    surprise: NDArray[np.float64]

    @classmethod
    def of(
        cls, phases: ItemPhases, values: NDArray[np.float32], facts: Facts, num_users: int, strengths: Strengths | None
    ) -> "Expectation":
        """Fit the closed form to the items that are learnt from."""
        rows, train, attributes = phases.rows, phases.train, facts.attributes.numpy()
        users, items = rows.users[train], rows.items[train]
        closed = ClosedForm.fit(users, items, values[train], num_users, attributes, strengths)
        priors, levels = closed.priors(attributes), closed.user_levels()
        item_levels = closed.item_levels(users, items, values[train], priors)
        residual = values.astype(np.float64) - closed.mean
        without = closed.user_levels_without(rows.users, residual - item_levels[rows.items])
        own = np.where(phases.parts == 0, without, levels[rows.users])
        return cls(
            closed,
            max(float(values[train].std()), 1e-6),
            torch.from_numpy(priors).float(),
            torch.from_numpy(own).float(),
            torch.from_numpy(residual - own).float(),
            residual - levels[rows.users] - item_levels[rows.items],
        )

    def of_items(
        self,
        items: Int[Tensor, " items"],
        known: Int[Tensor, "items judgements"],
        keep: Bool[Tensor, "items judgements"],
        asked: Int[Tensor, "items questions"],
    ) -> tuple[Float[Tensor, "items judgements"], Float[Tensor, "items questions"]]:
        """Return what is expected of known rows, each from the other known ones, and of asked ones, from all known."""
        left, strength = self.left[known] * keep, self.closed.strengths.item
        total, count = left.sum(1, keepdim=True) + strength * self.priors[items, None], keep.sum(1, keepdim=True)
        others = (total - left) / (strength + (count - 1).clamp(min=0))
        of_known = (self.user_levels[known] + others) / self.scale
        return of_known, (self.user_levels[asked] + total / (strength + count)) / self.scale


class TaskCutter:
    """Cuts judgements into what is known of items and what is asked.

    Args:
        phases: the judgements, divided.
        facts: of all items.
        num_users: how many there are.
        strengths: of the closed form.
    """

    def __init__(self, phases: ItemPhases, facts: Facts, num_users: int, strengths: Strengths | None = None) -> None:
        self.phases, self.facts, self.num_users = phases, facts, num_users
        rows, own = phases.rows, phases.parts == 0
        fitted = [Expectation.of(phases, values, facts, num_users, strengths) for values in (rows.values, rows.labels)]
        self.expectations = tuple(fitted)
        self._taste = self._tastes(own, fitted[0].surprise)
        self._columns = {"users": torch.from_numpy(rows.users), "labels": torch.from_numpy(rows.labels)}

    def _tastes(self, own: NDArray[np.bool_], surprise: NDArray[np.float64]) -> Float[Tensor, "rows width"]:
        """Return each row's user's taste: the mean of texts by how much she liked each more than was expected."""
        texts, rows = self.facts.texts, self.phases.rows
        if texts is None:
            return torch.zeros(len(rows), 0)
        users, weights = torch.from_numpy(rows.users), torch.from_numpy(np.where(own, surprise, 0.0)).float()
        parts = weights[:, None] * texts[torch.from_numpy(rows.items)]
        sums = torch.zeros(self.num_users, texts.shape[1]).index_add_(0, users, parts)
        counts = torch.zeros(self.num_users).index_add_(0, users, torch.from_numpy(own).float())
        held = TASTE_STRENGTH + counts[users] - torch.from_numpy(own).float()
        return (sums[users] - parts) / held[:, None]

    def cut(
        self,
        items: NDArray[np.integer],
        known: Sequence[NDArray[np.integer]],
        asked: Sequence[NDArray[np.integer]],
    ) -> tuple[ItemTasks, ItemTasks]:
        """Return what is known of items and what is asked, each row number once.

        A known judgement is expected from the other known ones, an asked one from all that is known.

        Args:
            items: ``[items]``.
            known: row numbers a item; may be none.
            asked: row numbers a item.
        """
        ids = torch.from_numpy(np.asarray(items, dtype=np.int64))
        (rows, keep), (wanted, wanted_keep) = _padded(known), _padded(asked)
        pairs = [each.of_items(ids, rows, keep, wanted) for each in self.expectations]
        of_known, of_asked = (torch.stack(both, dim=-1) for both in zip(*pairs, strict=True))
        return self._tasks(ids, rows, keep, of_known), self._tasks(ids, wanted, wanted_keep, of_asked)

    def _tasks(
        self,
        items: Int[Tensor, " items"],
        rows: Int[Tensor, "items judgements"],
        keep: Bool[Tensor, "items judgements"],
        expected: Float[Tensor, "items judgements 2"],
    ) -> ItemTasks:
        return ItemTasks(
            items=items,
            users=self._columns["users"][rows].masked_fill(~keep, 0),
            labels=self._columns["labels"][rows] * keep,
            keep=keep,
            expected=expected * keep[..., None],
            taste=self._taste[rows] * keep[..., None],
        )

    def phase(self, part: Part, phase: Phase) -> tuple[ItemTasks, ItemTasks]:
        """Return what is known and what is asked of the items of a part."""
        items = self.phases.items[part]
        parts = (self.phases.known(part, phase), self.phases.queries(part))
        known, asked = (_by_item(self.phases.rows.items, rows, items) for rows in parts)
        return self.cut(items, known, asked)

    def in_order(self, part: Part, scores: Float[Tensor, "items judgements"], tasks: ItemTasks) -> NDArray[np.float64]:
        """Return scores of :meth:`phase`'s questions in the order of the query rows."""
        rows, items = self.phases.queries(part), self.phases.rows.items
        order = np.argsort(items[rows], kind="stable")
        result = np.empty(len(rows))
        result[order] = scores[tasks.keep].double().numpy()
        return result


def _padded(rows: Sequence[NDArray[np.integer]]) -> tuple[Int[Tensor, "items most"], Bool[Tensor, "items most"]]:
    width = max([1, *map(len, rows)])
    numbers, lengths = np.zeros((len(rows), width), dtype=np.int64), np.array([len(each) for each in rows])
    keep = np.arange(width) < lengths[:, None]
    numbers[keep] = np.concatenate([np.zeros(0, np.int64), *rows])
    return torch.from_numpy(numbers), torch.from_numpy(keep)


def _by_item(owners: NDArray[np.int64], rows: NDArray[np.int64], items: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the rows of each item, in time order."""
    ordered = rows[np.argsort(owners[rows], kind="stable")]
    ends = np.searchsorted(owners[ordered], items, side="right")
    begins = np.searchsorted(owners[ordered], items, side="left")
    return [ordered[begin:end] for begin, end in zip(begins, ends, strict=True)]
