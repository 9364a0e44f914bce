"""Labels in a student's order from teachers that come and go: every one delivered exactly once.

The pool promises each task at least once; a table of what is pending, in flight and done, and task ids by which a
second answer is known, make exactly once of it. This module knows no batch, model or transport.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich.text import Text

from m6rec.distillation.config import StreamConfig
from m6rec.distillation.lessons import Labels
from m6rec.distillation.pool import Answered, Event, Failed, Gone, Joined, Took
from m6rec.distillation.teacher import TeacherCard, read_answer
from m6rec.errors import DistillationError

logger = logging.getLogger(__name__)

# Longest wait between two looks at leases and at who is there.
_TURN_SECONDS = 0.5
# Share of the time from which on a student that waits wants more teachers.
_STARVED = 0.2


class Teachers(Protocol):
    """What a stream needs of a pool."""

    def submit(self, task: int, request: bytes) -> None:
        """Queue a task for whoever is free next."""

    def results(self, timeout: float) -> list[Event]:
        """Return what teachers have done; wait up to ``timeout`` for something."""

    def alive(self) -> list[str]:
        """Return the teachers that are up."""

    def remove(self, name: str) -> None:
        """Let a teacher go for good."""

    def clear(self) -> None:
        """Forget what is queued and not begun."""


@dataclass
class Entry:
    """One task of the table: PENDING, INFLIGHT(teacher, since) or DONE.

    Args:
        request: what a teacher is asked; kept until it is done, for it may have to be asked again.
        teacher: who is at it; ``None`` = pending or done.
        since: when that one began.
        labels: the answer; ``None`` = not done.
        failures: how often it was lost or refused.
        lost_at: when it was first lost.
    """

    request: bytes
    teacher: str | None = None
    since: float = 0.0
    labels: Labels | None = None
    failures: int = 0
    lost_at: float | None = None


@dataclass
class Figures:
    """What a stream has come to so far.

    Args:
        delivered: tasks handed to the student.
        requeued: times that a task was asked again.
        duplicates: answers that came a second time and were dropped.
        waited_seconds: how long the student stood still for labels.
        recoveries: seconds from each loss of a task to its answer by another teacher.
    """

    delivered: int = 0
    requeued: int = 0
    duplicates: int = 0
    waited_seconds: float = 0.0
    recoveries: list[float] = field(default_factory=list)


class LabelStream:
    """A window of tasks in flight over a pool.

    Args:
        pool: of teachers.
        config: window, order, leases, patience.
        wanted: the card of a teacher that fits; its version, where it has one, is the only one that is believed.
        clock: seconds.

    Source: EDL-Dist (arXiv 2207.06667) and its code: a semaphore of 2R+2 tasks, results held until it is their turn.
    Differs: a task is also asked again when its lease runs out, not only when its teacher fails, and answers are told
        apart by id, so that at-least-once work gives exactly-once labels. A student that crashes loses nothing: what it
        has learnt from is in its checkpoint, and the rest is asked again.
    """

    def __init__(
        self, pool: Teachers, config: StreamConfig, wanted: TeacherCard, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.pool, self.config, self.wanted, self.clock = pool, config, wanted, clock
        self.figures, self.version = Figures(), wanted.version or None
        self._table: dict[int, Entry] = {}
        self._left: list[int] = []
        self._late: set[str] = set()
        self._refused: set[str] = set()
        self._alone_since: float | None = None
        self._why = "none has come up yet"
        self._started = self._reported = clock()

    @property
    def window(self) -> int:
        """Tasks that may be in flight or wait for their turn."""
        return self.config.window or 2 * max(1, len(self.pool.alive())) + 2

    def start(self, tasks: Sequence[int], ask: Callable[[int], bytes], check: Callable[[int, Labels], None]) -> None:
        """Begin anew with these tasks; whatever was in flight is forgotten.

        Args:
            tasks: ids, in the student's order; an id is used once in a stream's life, or for the same batch again.
            ask: id -> what a teacher is asked; called once, shortly before the task enters the window.
            check: raises DistillationError where labels do not fit their task.
        """
        self.pool.clear()
        self._left, self._table = list(reversed(tasks)), {}
        self._ask, self._check = ask, check
        self._fill()

    def take(self) -> tuple[int, Labels]:
        """Return the next task and its labels: in order, or whichever is done first.

        Raises:
            DistillationError: no teacher for too long, a task that nobody can do, or nobody who fits.
        """
        self._turn(0.0)
        started = self.clock()
        while (task := self._ready()) is None:
            if not self._table:
                raise DistillationError("every task of this epoch has been delivered")
            self._turn(_TURN_SECONDS)
            self._look_for_teachers()
        self.figures.waited_seconds += self.clock() - started
        self.figures.delivered += 1
        labels = self._table.pop(task).labels
        assert labels is not None
        self._fill()  # teachers work at what comes while the student learns this
        return task, labels

    def _ready(self) -> int | None:
        if self.config.ordered:
            first = next(iter(self._table), None)
            return first if first is not None and self._table[first].labels is not None else None
        return next((task for task, entry in self._table.items() if entry.labels is not None), None)

    def _fill(self) -> None:
        while self._left and len(self._table) < self.window:
            task = self._left.pop()
            self._table[task] = Entry(self._ask(task))
            self.pool.submit(task, self._table[task].request)

    def _turn(self, wait: float) -> None:
        """Hear what teachers have done, and see to leases and to whether anybody is there."""
        for event in self.pool.results(wait):
            self._on(event)
        now = self.clock()
        for task, entry in self._table.items():
            if entry.teacher is not None and now - entry.since > self.config.lease_seconds:
                logger.warning(
                    "teacher %s has held a batch for %.0f s; asking another", entry.teacher, now - entry.since
                )
                self._late.add(entry.teacher)
                self._again(task, now)
        self._fill()  # a teacher more makes the window wider
        if now - self._reported > self.config.report_seconds:
            self._reported = now
            logger.info("%s", self.line())

    def _look_for_teachers(self) -> None:
        now = self.clock()
        if set(self.pool.alive()) - self._late:
            self._alone_since = None
            return
        self._alone_since = now if self._alone_since is None else self._alone_since
        if now - self._alone_since > self.config.patience_seconds:
            raise DistillationError(
                f"no teacher for {now - self._alone_since:.0f} s ({self._why}); bring one up and go on with "
                "--resume, or set distillation.stream.patience_seconds"
            )

    def _on(self, event: Event) -> None:
        entry = self._table.get(event.task) if isinstance(event, Took | Answered | Failed) else None
        if isinstance(event, Joined):
            self._meet(event.teacher, event.card)
        elif isinstance(event, Took):
            if entry is not None and entry.labels is None:
                entry.teacher, entry.since = event.teacher, event.at
        elif isinstance(event, Gone):
            self._lose(event)
        elif isinstance(event, Answered):
            self._late.discard(event.teacher)
            self._hear(event, entry)
        elif isinstance(event, Failed):
            self._late.discard(event.teacher)
            if entry is not None and entry.labels is None:
                self._fail(event.task, event.reason, event.at)

    def _meet(self, teacher: str, card: TeacherCard) -> None:
        if mismatch := card.mismatch(self.wanted):
            self._refuse(teacher, f"it has {mismatch}; take one that was trained on the same backbone and task")
        elif not self._is_believed(card.version):
            self._refuse(teacher, self._two_versions(card.version))
        else:
            self.version = self.version or card.version
            logger.info("teacher %s is up", teacher)

    def _is_believed(self, version: str) -> bool:
        return self.config.mix_versions or self.version in (None, version)

    def _two_versions(self, version: str) -> str:
        return (
            f"it has version {version}, and labels so far are of {self.version}; two are not mixed: serve the same "
            "weights, or set distillation.stream.mix_versions=true"
        )

    def _hear(self, event: Answered, entry: Entry | None) -> None:
        if entry is None or entry.labels is not None:
            self.figures.duplicates += 1
            return
        try:
            labels, version = read_answer(event.answer)
        except DistillationError as error:
            self._fail(event.task, str(error), event.at)
            return
        try:
            if event.teacher in self._refused:  # it may have been at work before its card was read
                raise DistillationError("it was refused before")
            if not self._is_believed(version):
                raise DistillationError(self._two_versions(version))
            self._check(event.task, labels)
        except DistillationError as error:
            self._again(event.task, event.at)
            self._refuse(event.teacher, str(error))
            return
        entry.labels, entry.teacher, entry.request = labels, None, b""
        if entry.lost_at is not None:
            self.figures.recoveries.append(event.at - entry.lost_at)

    def _lose(self, event: Gone) -> None:
        self._late.discard(event.teacher)
        if event.reason != "removed":
            self._why = f"teacher {event.teacher}: {event.reason}"
            logger.warning("%s", self._why)
        for task in [task for task, entry in self._table.items() if entry.teacher == event.teacher]:
            self._fail(task, event.reason, event.at)

    def _fail(self, task: int, reason: str, at: float) -> None:
        entry = self._table[task]
        entry.failures += 1
        if entry.failures >= self.config.max_attempts:
            raise DistillationError(f"a batch was tried {entry.failures} times and never labelled; last: {reason}")
        self._again(task, at)

    def _again(self, task: int, at: float) -> None:
        entry = self._table[task]
        entry.teacher, entry.lost_at = None, at if entry.lost_at is None else entry.lost_at
        self.figures.requeued += 1
        self.pool.submit(task, entry.request)

    def _refuse(self, teacher: str, why: str) -> None:
        """Let a teacher go that cannot be believed; the run ends only where nobody else is there.

        Raises:
            DistillationError: nobody else is.
        """
        if teacher in self._refused:
            return
        self._refused.add(teacher)
        self.pool.remove(teacher)
        self._why = f"teacher {teacher}: {why}"
        if not self.pool.alive():
            raise DistillationError(self._why)
        logger.error("%s; it is let go", self._why)

    def line(self) -> Text:
        """Return how it goes, in one line."""
        seconds = max(self.clock() - self._started, 1e-9)
        starved = self.figures.waited_seconds / seconds
        in_flight = sum(entry.labels is None for entry in self._table.values())
        line = Text(f"teachers {len(self.pool.alive())}  in flight {in_flight}  requeued {self.figures.requeued}  ")
        line.append(f"labelled batches/s {self.figures.delivered / seconds:.2f}  ")
        return line.append(f"student waits {starved:.0%}", style="red" if starved > _STARVED else "green")
