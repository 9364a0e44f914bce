"""Teachers that come and go: each takes the next batch as soon as it is free, so that slow ones get less.

At least once is all that the pool promises: what a teacher held when it died, somebody else asks for again. It knows no
order, no window and no label.
"""

import logging
import queue
import threading
import time
from dataclasses import dataclass

from m6rec.distillation.executors.base import Executor
from m6rec.distillation.teacher import TeacherCard
from m6rec.errors import M6RecError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """Something that a teacher did.

    Args:
        teacher: its name in the pool.
        at: when, on the pool's clock.
    """

    teacher: str
    at: float


@dataclass(frozen=True)
class Joined(Event):
    """It is up."""

    card: TeacherCard


@dataclass(frozen=True)
class Took(Event):
    """It has begun a task."""

    task: int


@dataclass(frozen=True)
class Answered(Event):
    """It has done a task."""

    task: int
    answer: bytes


@dataclass(frozen=True)
class Failed(Event):
    """It could not do a task, and is there all the same."""

    task: int
    reason: str


@dataclass(frozen=True)
class Gone(Event):
    """It is no more: dead, removed, or never up."""

    reason: str


class TeacherPool:
    """A shared queue of tasks, the lowest first, one thread for each teacher, and an inbox of what they did.

    The thread does nothing but wait for its teacher, wherever that runs; all deciding is done by who reads the inbox.
    """

    def __init__(self) -> None:
        self._tasks: queue.PriorityQueue[tuple[int, bytes]] = queue.PriorityQueue()
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._teachers: dict[str, _Staffed] = {}

    def add(self, name: str, executor: Executor) -> None:
        """Bring a teacher up, in its own time; the inbox tells when it is there, or why not."""
        self._teachers[name] = _Staffed(name, executor, self._tasks, self._inbox)

    def remove(self, name: str) -> None:
        """Let a teacher go after the task that it is at."""
        if name in self._teachers:
            self._teachers[name].leave()

    def alive(self) -> list[str]:
        """Return the teachers that are up."""
        return [name for name, teacher in self._teachers.items() if teacher.up]

    def submit(self, task: int, request: bytes) -> None:
        """Queue a task for whoever is free next."""
        self._tasks.put((task, request))

    def results(self, timeout: float) -> list[Event]:
        """Return what teachers have done, in the order in which they did it; wait up to ``timeout`` for something."""
        found: list[Event] = []
        try:
            found.append(self._inbox.get(timeout=timeout) if timeout > 0 else self._inbox.get_nowait())
            while True:
                found.append(self._inbox.get_nowait())
        except queue.Empty:
            pass
        for event in found:
            if isinstance(event, Gone):
                self._teachers.pop(event.teacher, None)
        return found

    def clear(self) -> None:
        """Forget what is queued and not begun."""
        while not self._tasks.empty():
            try:
                self._tasks.get_nowait()
            except queue.Empty:
                return

    def close(self) -> None:
        """Let everybody go at once, whatever they are at."""
        teachers = list(self._teachers.values())
        for teacher in teachers:
            teacher.end()
        for teacher in teachers:
            teacher.join()
        self._teachers.clear()


class _Staffed(threading.Thread):
    """A teacher and the thread that waits for it."""

    def __init__(
        self,
        name: str,
        executor: Executor,
        tasks: "queue.PriorityQueue[tuple[int, bytes]]",
        inbox: "queue.SimpleQueue[Event]",
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.up, self._executor, self._tasks, self._inbox = False, executor, tasks, inbox
        self._leaving = threading.Event()
        self.start()

    def leave(self) -> None:
        self._leaving.set()
        self.up = False

    def end(self) -> None:
        self.leave()
        self._executor.close()

    def run(self) -> None:
        reason = "it ended in a way that nobody foresaw"
        try:
            card = self._executor.open()
            self.up = not self._leaving.is_set()
            self._inbox.put(Joined(self.name, time.monotonic(), card))
            self._serve()
            reason = "removed"
        except (ConnectionError, M6RecError) as error:
            reason = str(error)
        finally:
            self.up = False
            self._executor.close()
            self._inbox.put(Gone(self.name, time.monotonic(), reason))

    def _serve(self) -> None:
        while not self._leaving.is_set():
            try:
                task, request = self._tasks.get(timeout=_LOOK_UP_SECONDS)
            except queue.Empty:
                continue
            self._inbox.put(Took(self.name, time.monotonic(), task))
            try:
                answer = self._executor.label(request)
            except M6RecError as error:
                self._inbox.put(Failed(self.name, time.monotonic(), task, str(error)))
            else:
                self._inbox.put(Answered(self.name, time.monotonic(), task, answer))


# How long a removed teacher that has nothing to do stays.
_LOOK_UP_SECONDS = 0.1
