"""The pipeline in one process: asyncio around it, threads (or processes) for its stages. Knows no model."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from m6rec.errors import ConfigError, M6RecError, OverloadedError
from m6rec.serving.executors.base import Answer
from m6rec.serving.executors.workers import Processes, Threads, Workers
from m6rec.serving.graph import Graph
from m6rec.serving.lane import Batch
from m6rec.serving.scheduler import Outcomes, Scheduler
from m6rec.serving.stage import Sink

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalConfig:
    """Settings of :class:`LocalExecutor`.

    Raises:
        ConfigError: lists every impossible value at once.
    """

    deadline_ms: float = 1000.0
    """How long a request may take that does not say so itself; changes which requests are refused or late."""
    pieces: int = 64
    """Pieces of a streamed answer that wait for a slow client, before its writer waits too; speed and memory only."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: got {getattr(self, name)}, expected more than 0"
            for name in ("deadline_ms", "pieces")
            if getattr(self, name) <= 0
        ]
        if problems:
            raise ConfigError("\n".join(problems))


class LocalExecutor:
    """Runs a graph in this process, on one event loop with threads and processes beside it.

    Args:
        graph: what is served.
        config: defaults of requests.

    Source: SEDA (Welsh et al., SOSP 2001): a stage is a handler, a queue and its own workers.
    """

    Config = LocalConfig
    name = "local"

    def __init__(self, graph: Graph, config: LocalConfig | None = None) -> None:
        self.graph, self.config = graph, config or LocalConfig()
        self._service: _Service | None = None
        self._leaving: list[_Service] = []

    async def start(self) -> None:
        """Make the scheduler; workers come with the first batches."""
        self._service = _Service(self.graph)

    async def submit(
        self, request: Mapping[str, Any], *, deadline_ms: float | None = None, kind: str = "recommend"
    ) -> Answer:
        """Return the answer to one request (see :class:`~m6rec.serving.executors.base.Executor`)."""
        return await self._open().ask(request, kind, deadline_ms or self.config.deadline_ms)

    async def stream(
        self, request: Mapping[str, Any], *, deadline_ms: float | None = None, kind: str = "generate"
    ) -> AsyncIterator[str | Answer]:
        """Yield an answer's text in pieces, and at the end the answer whole."""
        channel = _Channel(self.config.pieces)
        asking = self._open().ask(request, kind, deadline_ms or self.config.deadline_ms, channel)
        answer = asyncio.ensure_future(asking)
        answer.add_done_callback(lambda _: channel.end())
        try:
            async for piece in channel:
                yield piece
            yield await answer
        finally:
            channel.close()
            answer.cancel()

    async def swap(self, graph: Graph) -> None:
        """Serve another graph; returns when the former one is empty and closed."""
        former = self._open()
        self.graph, self._service = graph, _Service(graph)
        self._leaving.append(former)
        await former.idle.wait()
        former.close()
        self._leaving.remove(former)

    async def drain(self, timeout_s: float = 30.0) -> None:
        """Take no more requests, finish those under way, end all workers."""
        leaving = [*self._leaving, *([self._service] if self._service else [])]
        self._service = None
        for service in leaving:
            try:
                await asyncio.wait_for(service.idle.wait(), timeout_s)
            except TimeoutError:
                logger.warning("%d requests are given up", service.scheduler.in_flight)
                service.scheduler.give_up(OverloadedError("the server shuts down", 1.0))
            if service not in self._leaving:
                service.close()

    def report(self) -> dict[str, Any]:
        """Return figures as plain values (see :class:`~m6rec.serving.executors.base.Executor`)."""
        if self._service is None:
            return {"ready": False, "version": self.graph.version}
        return self._service.scheduler.report()

    def _open(self) -> "_Service":
        if self._service is None:
            raise OverloadedError("the server takes no requests", 1.0)
        return self._service


class _Service:
    """One graph at work: its scheduler, its workers, and the timer between them.

    Args:
        graph: to run.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self._loop = graph, asyncio.get_running_loop()
        self.scheduler = Scheduler(graph, self._loop.time())
        queued = [stage for stage in graph.stages if stage.kind != "inline"]
        self._workers: dict[str, Workers] = {
            stage.name: Processes(stage) if stage.kind == "process" else Threads(stage) for stage in queued
        }
        self._timer: asyncio.TimerHandle | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    async def ask(
        self, request: Mapping[str, Any], kind: str, deadline_ms: float, sink: Sink | None = None
    ) -> dict[str, Any]:
        """Return the answer to one request."""
        outcome: asyncio.Future[dict[str, Any] | M6RecError] = self._loop.create_future()
        now = self._loop.time()
        ticket = self.scheduler.submit(request, kind, now, now + deadline_ms / 1000, partial(_settle, outcome), sink)
        self._pump()
        try:
            found = await outcome
        except asyncio.CancelledError:
            self.scheduler.cancel(ticket)
            self._pump()
            raise
        if isinstance(found, M6RecError):
            raise found
        return found

    def close(self) -> None:
        """Let workers, models and files go."""
        if self._timer is not None:
            self._timer.cancel()
        for workers in self._workers.values():
            workers.close()
        self.graph.close()

    def _pump(self) -> None:
        """Begin what can begin now, and come back when it is time."""
        now = self._loop.time()
        for batch in self.scheduler.ready(now):
            self._workers[batch.stage.name].start(batch, partial(self._ended, batch))
        if self.scheduler.is_idle:
            self.idle.set()
        else:
            self.idle.clear()
        if self._timer is not None:
            self._timer.cancel()
        wake = self.scheduler.wake(now)
        self._timer = None if wake is None else self._loop.call_later(wake - now, self._pump)

    def _ended(self, batch: Batch, outcomes: Outcomes) -> None:
        """Bring a batch's outcome from its worker's thread to the loop's."""
        try:
            self._loop.call_soon_threadsafe(self._finish, batch, outcomes)
        except RuntimeError:
            logger.info("a batch of stage %s ended after its server", batch.stage.name)

    def _finish(self, batch: Batch, outcomes: Outcomes) -> None:
        self.scheduler.finished(batch, outcomes, self._loop.time())
        self._pump()


class _Channel:
    """Pieces from a worker's thread to the loop, a bounded number of them at a time.

    Args:
        pieces: most that wait for the reader.
    """

    def __init__(self, pieces: int) -> None:
        self._loop, self._room = asyncio.get_running_loop(), threading.Semaphore(pieces)
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self.is_open = True

    def push(self, piece: str) -> bool:
        """Hand on a piece from another thread; waits while the reader is slow."""
        while self.is_open:
            if self._room.acquire(timeout=0.1):
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
                return True
        return False

    def end(self) -> None:
        """Let the reader know that no more pieces come."""
        self._pieces.put_nowait(None)

    def close(self) -> None:
        """Read no more; the writer stops at its next piece."""
        self.is_open = False

    async def __aiter__(self) -> AsyncIterator[str]:
        while (piece := await self._pieces.get()) is not None:
            self._room.release()
            yield piece


def _settle(outcome: "asyncio.Future[dict[str, Any] | M6RecError]", found: dict[str, Any] | M6RecError) -> None:
    if not outcome.done():
        outcome.set_result(found)
