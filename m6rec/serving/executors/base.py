"""What an executor is: it runs a graph of stages and answers requests. This module knows no machine and no model."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, runtime_checkable

from m6rec.serving.graph import Graph

Answer = dict[str, Any]
"""What a request gets: what the graph answers (``items``, ``text``, ...), and beside it

* ``rung``: name of the ladder's rung that made it (:mod:`m6rec.serving.shedding`), or ``"cache"``,
* ``version``: of the models that made it,
* ``trace``: stage -> ``ms`` in it, ``wait_ms`` before it, ``size`` of the request there, ``batch`` that it was run in
  (how many) and its ``batch_size``, and what the stage itself noted.
"""


@runtime_checkable
class Executor(Protocol):
    """Runs a graph of stages: built from the graph and its own config, used from one event loop."""

    Config: Any
    config: Any

    @property
    def graph(self) -> Graph:
        """What is served now."""
        ...

    async def start(self) -> None:
        """Make workers; requests are taken from here on."""
        ...

    async def submit(
        self, request: Mapping[str, Any], *, deadline_ms: float | None = None, kind: str = "recommend"
    ) -> Answer:
        """Return the answer to one request.

        Args:
            request: what the graph's door understands; plain values, as JSON has them.
            deadline_ms: how long it may take; ``None`` = the executor's default.
            kind: what is asked for, one of the graph's kinds.

        Raises:
            DataError: the request cannot be read.
            ConfigError: it asks for what is impossible; an unknown kind among it.
            OverloadedError: refused at admission; says when to come again.
            DeadlineError: not answered in time.
            StageError: a stage failed on it.
        """
        ...

    def stream(
        self, request: Mapping[str, Any], *, deadline_ms: float | None = None, kind: str = "generate"
    ) -> AsyncIterator[str | Answer]:
        """Yield the answer's text in pieces as it is written, and at the end the answer whole.

        Raises:
            M6RecError: as :meth:`submit`, at the first step or in the middle.
        """
        ...

    async def swap(self, graph: Graph) -> None:
        """Serve another graph, models and tiers together: new requests go there, those under way end where they began.

        Returns when the former graph is empty and closed.
        """
        ...

    async def drain(self, timeout_s: float = 30.0) -> None:
        """Take no more requests, finish those under way (or fail them after ``timeout_s``), and end all workers."""
        ...

    def report(self) -> dict[str, Any]:
        """Return figures as plain values, for metrics and readiness.

        ``ready``; ``version``; ``requests``: outcome -> count (``answered``, ``refused``, ``expired``, ``failed``,
        ``bad``: the request's own mistake, ``cancelled``, ``shared``: those that found an identical one in flight);
        ``rungs``: name -> answers; ``latency_ms`` (``p50``, ``p95``, ``p99``); ``level`` of the controller, 1 = whole
        service; ``in_flight``; ``stages``: name -> ``done``, ``dropped`` (too late when taken out), ``failed``, and
        where it is queued for ``queued``, ``running``, ``hung``, ``wait_ms`` and ``run_ms`` (as ``latency_ms``),
        ``batches`` (size -> count), ``cost_ms`` (``base``, ``each``); ``tiers``: name -> ``hits``, ``misses``,
        ``used_bytes``.
        """
        ...
