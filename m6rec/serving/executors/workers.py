"""Who runs a stage's batches: threads of this process, or processes. Knows no queue and no model."""

import concurrent.futures
import logging
import multiprocessing
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from m6rec.serving.lane import Batch
from m6rec.serving.stage import Payload, Stage, Update, run_batch

Outcomes = Sequence[Update | Exception] | Exception
Ended = Callable[[Outcomes], None]
"""Called from any thread, once a batch is through."""
logger = logging.getLogger(__name__)


class Workers(Protocol):
    """Runs the batches of one stage; how many at once is the scheduler's matter."""

    def start(self, batch: Batch, ended: Ended) -> None:
        """Run a batch beside the others."""
        ...

    def close(self) -> None:
        """Let all workers go; one that hangs is left behind."""
        ...


class Threads:
    """Threads that share memory; a new one whenever none is idle, so that one that hangs is replaced.

    They are daemons: one that hangs for ever does not keep the process from ending.

    Args:
        stage: whose batches.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._work: queue.SimpleQueue[tuple[Batch, Ended] | None] = queue.SimpleQueue()
        self._lock, self._idle, self._count = threading.Lock(), 0, 0

    def start(self, batch: Batch, ended: Ended) -> None:
        """Run a batch in an idle thread."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                self._count += 1
                threading.Thread(target=self._run, name=f"{self.stage.name}-{self._count}", daemon=True).start()
        self._work.put((batch, ended))

    def close(self) -> None:
        """End every thread after what it runs."""
        for _ in range(self._count):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            batch, ended = work
            outcomes = run_batch(self.stage, batch.events)
            with self._lock:
                self._idle += 1
            ended(outcomes)


class Processes:
    """Processes, for stages that hold the interpreter's lock; one that dies is replaced, and its batch is run again.

    Args:
        stage: whose batches; ``run`` is sent to each process once.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._lock = threading.Lock()
        self._pool = self._new()

    def start(self, batch: Batch, ended: Ended) -> None:
        """Run a batch in an idle process."""
        self._send([event.payload for event in batch.events], ended, again=True)

    def close(self) -> None:
        """End every process, whatever it does."""
        with self._lock:
            _end(self._pool)

    def _new(self) -> concurrent.futures.ProcessPoolExecutor:
        plan = self.stage.plan
        return concurrent.futures.ProcessPoolExecutor(
            plan.workers + plan.spares, multiprocessing.get_context("spawn"), _install, (self.stage.run,)
        )

    def _send(self, payloads: list[Payload], ended: Ended, again: bool) -> None:
        with self._lock:
            pool = self._pool
            try:
                future = pool.submit(_run, payloads)
            except BrokenProcessPool:
                pool = self._pool = self._new()
                future = pool.submit(_run, payloads)

        def through(future: "concurrent.futures.Future[Outcomes]") -> None:
            error = future.exception()
            if isinstance(error, BrokenProcessPool) and again:
                logger.warning("a process of stage %s died; its batch is run again", self.stage.name)
                self._send(payloads, ended, again=False)
            else:
                ended(error if isinstance(error, Exception) else future.result())

        future.add_done_callback(through)


_INSTALLED: Any = None


def _install(run: Any) -> None:
    global _INSTALLED
    _INSTALLED = run


def _run(payloads: list[Payload]) -> Outcomes:
    return list(_INSTALLED(payloads))


def _end(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
