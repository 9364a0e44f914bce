"""Where a student's labels come from, behind one interface: teachers elsewhere, a teacher here, or what was kept.

This module knows no model, loss or transport.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from m6rec.distillation.labels import LabelStream
from m6rec.distillation.lessons import Ask, Labels, Lesson
from m6rec.distillation.stored import LabelStore, batch_labels
from m6rec.distillation.teacher import Teacher, request_of
from m6rec.errors import DistillationError

Indices = tuple[int, ...]
Collate = Callable[[Indices], Any]
# Of one process: epoch -> the examples of each piece that it runs, in order.
Plan = Callable[[int], Sequence[Indices]]
# Where in the training a batch is made -> a context in which chance depends on that place alone.
Drawing = Callable[..., AbstractContextManager[None]]
# Task ids of an epoch follow this many of the former one's.
_EPOCH = 1 << 32


class LabelSource(Protocol):
    """Gives batches with labels."""

    def open(self, epoch: int, collate: Collate) -> None:
        """Begin an epoch.

        Args:
            epoch: its number.
            collate: examples by number -> a batch of the task.
        """

    def labelled(self, indices: Indices, ahead: Sequence[int] = ()) -> tuple[Any, list[Labels], list[int]]:
        """Return a batch, each teacher's labels of it, and which places of the epoch are learnt ahead of their turn.

        Args:
            indices: the examples that the loop wants next.
            ahead: what an earlier call returned, from a checkpoint where the run was resumed.
        """


class OnlineLabels:
    """A teacher in the student's own process: nothing is ever lost, and nothing happens at the same time.

    Args:
        teachers: one or several.
        ask: what is taught.
        drawing: makes a batch's chance depend on its place alone.
    """

    def __init__(self, teachers: Sequence[Teacher], ask: Ask, drawing: Drawing) -> None:
        self._teachers, self._ask, self._drawing = teachers, ask, drawing

    def open(self, epoch: int, collate: Collate) -> None:
        """Begin an epoch."""
        self._epoch, self._collate = epoch, collate

    def labelled(self, indices: Indices, ahead: Sequence[int] = ()) -> tuple[Any, list[Labels], list[int]]:
        """Return a batch and each teacher's labels of it."""
        with self._drawing(self._epoch, indices[0]):
            batch = self._collate(indices)
        return batch, [teacher.label(batch, self._ask) for teacher in self._teachers], []


class StoredLabels:
    """Labels that were written once.

    Args:
        stores: one for each teacher.
        lesson: how a batch's points belong to its examples.
        drawing: makes a batch's chance depend on its place alone.
    """

    def __init__(self, stores: Sequence[LabelStore], lesson: Lesson, drawing: Drawing) -> None:
        self._stores, self._lesson, self._drawing = stores, lesson, drawing

    def open(self, epoch: int, collate: Collate) -> None:
        """Begin an epoch."""
        self._epoch, self._collate = epoch, collate

    def labelled(self, indices: Indices, ahead: Sequence[int] = ()) -> tuple[Any, list[Labels], list[int]]:
        """Return a batch and each store's labels of it."""
        with self._drawing(self._epoch, indices[0]):
            batch = self._collate(indices)
        labels = [batch_labels(store, indices) for store in self._stores]
        for each in labels:
            self._lesson.check(each, batch)
        return batch, labels, []


class ElasticLabels:
    """Teachers elsewhere, asked ahead: while the student learns one batch, they read the next ones.

    A batch is made once, when it enters the window, under a chance of its own place: so the student learns the very
    batch that was labelled, and neither failures nor the number of teachers change what is drawn.

    Args:
        streams: one for each teacher; several take the same batches in the same order.
        lesson: what is taught.
        plan: the order of the loop.
        drawing: makes a batch's chance depend on its place alone.
    """

    def __init__(self, streams: Sequence[LabelStream], lesson: Lesson, plan: Plan, drawing: Drawing) -> None:
        self._streams, self._lesson, self._plan, self._drawing = streams, lesson, plan, drawing
        self._next: int | None = None
        self._ahead: list[int] = []

    def open(self, epoch: int, collate: Collate) -> None:
        """Begin an epoch; nothing is asked before the loop says where in it it stands."""
        self._epoch, self._collate, self._next = epoch, collate, None
        self._pieces = list(self._plan(epoch))
        self._place_of = {indices: place for place, indices in enumerate(self._pieces)}
        self._batches: dict[int, Any] = {}

    def labelled(self, indices: Indices, ahead: Sequence[int] = ()) -> tuple[Any, list[Labels], list[int]]:
        """Return the batch of the loop's next place (in free order: of any that is labelled) and its labels.

        Raises:
            DistillationError: the loop goes another way than planned.
        """
        place = self._place_of.get(indices)
        if place is None:
            raise DistillationError(f"got a batch of examples {indices[:4]}... that is no part of epoch {self._epoch}")
        if place != self._next:
            self._start(place, list(ahead))
        found = [stream.take() for stream in self._streams]
        self._next = place + 1
        given = found[0][0] - self._epoch * _EPOCH
        assert all(task == found[0][0] for task, _ in found)
        self._ahead = _ahead_of(place, [*self._ahead, given])
        return self._batches.pop(given), [labels for _, labels in found], self._ahead

    def _start(self, place: int, ahead: list[int]) -> None:
        low = place - len(ahead)
        self._ahead, self._batches = ahead, {}
        tasks = [self._epoch * _EPOCH + left for left in range(low, len(self._pieces)) if left not in set(ahead)]
        for stream in self._streams:
            stream.start(tasks, self._request, self._check)

    def _request(self, task: int) -> bytes:
        place = task - self._epoch * _EPOCH
        if place not in self._batches:
            indices = self._pieces[place]
            with self._drawing(self._epoch, indices[0]):
                self._batches[place] = self._collate(indices)
        return request_of(self._batches[place], self._lesson.ask)

    def _check(self, task: int, labels: Labels) -> None:
        self._lesson.check(labels, self._batches[task - self._epoch * _EPOCH])


def _ahead_of(place: int, delivered: list[int]) -> list[int]:
    """Return what is delivered beyond the first place that is not: the rest of the prefix needs no record.

    >>> _ahead_of(3, [2, 3, 5]), _ahead_of(0, [0])
    ([2, 3, 5], [])
    """
    low = place + 1 - len(delivered)
    waiting = sorted(delivered)
    while waiting and waiting[0] == low:
        low += 1
        waiting = waiting[1:]
    return waiting
