"""The request log: what came when, what it weighed in each stage, how long that took. Knows no model and no plan.

A JSON line a request, behind a line that says which stages there are; a new such line begins wherever those changed.
Identical requests have the same key, a hash under a secret of that log; who asked what cannot be read from it.
``keep_requests`` writes the requests themselves as well, which a replay for real wants, and which are personal.
"""

import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from m6rec.config import parse, plain
from m6rec.errors import ConfigError, DataError, M6RecError, RowError
from m6rec.serving.executors.base import Answer, Executor
from m6rec.serving.graph import Graph
from m6rec.serving.planning.load import outcome_of
from m6rec.serving.shedding import Ladder
from m6rec.serving.stage import Payload, Run, StagePlan, Update

FORMAT = 1


@dataclass(frozen=True)
class Visit:
    """What a request met in one stage."""

    ms: float = 0.0
    """Of the batch that it was in."""
    cpu_ms: float | None = None
    """What of these a core has worked, whoever else wanted it; null = not known."""
    wait_ms: float = 0.0
    """Before it, in the queue."""
    size: float = 1.0
    """Work that the request brought, in the stage's unit."""
    batch: int = 1
    """Requests in its batch."""
    batch_size: float = 1.0
    """Work in its batch."""


@dataclass(frozen=True)
class Logged:
    """One request."""

    at: float
    """Unix seconds when it came."""
    key: str
    """The same for identical requests."""
    kind: str = "recommend"
    """What was asked for."""
    deadline_ms: float = 1000.0
    """How long it had."""
    outcome: str = "answered"
    """answered, refused, expired, failed, or bad: the caller's mistake."""
    ms: float = 0.0
    """Until that."""
    answer_bytes: int = 0
    """About how large the answer is."""
    rung: str = ""
    """What made the answer; empty = there was none."""
    stages: Mapping[str, Visit] = field(default_factory=dict)
    """Stage -> what it met there; stages that it did not need are not here."""
    request: Mapping[str, Any] | None = None
    """The request itself, where the log keeps them."""


@dataclass(frozen=True)
class LoggedStage:
    """One stage of the graph that was logged."""

    name: str
    """Its name."""
    parents: tuple[str, ...] = ()
    """Stages before it."""
    kind: str = "thread"
    """inline, thread or process."""
    plan: StagePlan = field(default_factory=StagePlan)
    """How much it got."""


@dataclass(frozen=True)
class LogHead:
    """What a stretch of a log was served by."""

    format: int
    """Of the log."""
    version: str
    """Of the models."""
    stages: tuple[LoggedStage, ...]
    """In their order."""
    ladder: Ladder = field(default_factory=Ladder)
    """What was given up under load, step by step."""
    query_bytes: int = 0
    """Room of the cache of whole answers; 0 = there was none."""
    query_ttl_s: float = 0.0
    """How long an answer in it was as good as new."""
    threads: int = 1
    """Of torch, for each batch."""
    keys: str = ""
    """The same where equal keys mean equal requests."""

    @classmethod
    def of(cls, graph: Graph, threads: int, keys: str) -> "LogHead":
        """Return the head of a graph's log."""
        stages = tuple(LoggedStage(stage.name, stage.parents, stage.kind, stage.plan) for stage in graph.order)
        answers = getattr(graph.models, "answers", None)
        room, ttl_s = (0, 0.0) if answers is None else (answers.limit_bytes, answers.ttl_s)
        return cls(FORMAT, graph.version, stages, graph.ladder, room, ttl_s, threads, keys)

    def continues(self, other: "LogHead | None") -> bool:
        """Whether times and keys behind another head say the same as those behind this one."""
        return other is not None and replace(other, version=self.version) == self


@dataclass(frozen=True)
class RequestLog:
    """A log, read.

    Args:
        head: of its last stretch.
        requests: of that stretch, by time of arrival.
    """

    head: LogHead
    requests: tuple[Logged, ...]

    def part(self, start: float, end: float) -> "RequestLog":
        """Return a window, as shares of the requests."""
        count = len(self.requests)
        return RequestLog(self.head, self.requests[round(start * count) : round(end * count)])


def read_log(path: str | Path) -> RequestLog:
    """Read a log; only the requests behind its last head, for another graph's times say nothing of this one's.

    Raises:
        DataError: no such file, or no log.
        RowError: a line that cannot be read; names it.
    """
    head: LogHead | None = None
    requests: list[Logged] = []
    for number, tree in _lines(Path(path)):
        try:
            if "format" in tree:
                former, head = head, parse(LogHead, tree)
                requests = requests if head.continues(former) else []
            else:
                requests.append(parse(Logged, _known(tree)))
        except ConfigError as error:
            raise RowError(path, number, "*", str(error)) from error
        if head is None:
            raise DataError(f"{path} has no head, expected a line with `format` and `stages` before all requests")
        if head.format != FORMAT:
            raise DataError(f"{path} has log format {head.format}, this m6rec reads {FORMAT}; log anew")
    if head is None or not requests:
        raise DataError(f"{path} holds no requests; make a log with: m6rec serve RUN --log {path}")
    return RequestLog(head, tuple(sorted(requests, key=lambda logged: logged.at)))


def kept_requests(log: RequestLog) -> list[Mapping[str, Any]]:
    """Return the requests for recommendations that were answered, as they were.

    Raises:
        DataError: the log keeps none.
    """
    answered = (logged for logged in log.requests if logged.kind == "recommend" and logged.outcome == "answered")
    found = [logged.request for logged in answered if logged.request is not None]
    if not found:
        raise DataError(
            "the log keeps no requests for recommendations; log with: m6rec serve RUN --log LOG --keep-requests"
        )
    return found


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in lines:
        try:
            tree = json.loads(line)
        except ValueError as error:
            if number == lines[-1][0] and not line.endswith("\n"):
                return  # a writer that was killed
            raise RowError(path, number, "*", f"got a line that is no JSON ({error})") from error
        if not isinstance(tree, dict):
            raise RowError(path, number, "*", f"got {type(tree).__name__}, expected one JSON object a line")
        yield number, tree


def _known(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line without what stages noted of their own."""
    fields = Visit.__dataclass_fields__
    stages = {
        name: {key: value for key, value in visit.items() if key in fields}
        for name, visit in tree.get("stages", {}).items()
    }
    return {**tree, "stages": stages}


class RequestLogger:
    """Appends to a log.

    Args:
        path: the file; one that is there is gone on with.
        keep_requests: whether the requests themselves are written.
        threads: of torch, for each batch.
    """

    def __init__(self, path: str | Path, *, keep_requests: bool = False, threads: int = 1) -> None:
        self.path, self.keep_requests, self.threads = Path(path), keep_requests, threads
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = self.path.open("a", encoding="utf-8", buffering=1)
        self._secret = secrets.token_bytes(16)

    def begin(self, graph: Graph) -> None:
        """Say what serves from here on."""
        keys = hashlib.blake2b(b"keys", key=self._secret, digest_size=4).hexdigest()
        self._write(plain(LogHead.of(graph, self.threads, keys)))

    def key(self, kind: str, request: Mapping[str, Any]) -> str:
        """Return what identical requests share, and nobody can turn back into one."""
        said = json.dumps([kind, request], sort_keys=True, default=str, ensure_ascii=False)
        return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=8).hexdigest()

    def write(self, logged: Logged) -> None:
        """Append one request."""
        tree = plain(logged)
        if not self.keep_requests:
            del tree["request"]
        self._write(tree)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _write(self, tree: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(tree, ensure_ascii=False, default=str) + "\n")


class LoggedExecutor:
    """An executor whose requests are logged; an executor itself.

    Args:
        inner: answers; over a :func:`timed` graph, stages' costs are of a core and not of its other work too.
        logger: writes.
    """

    def __init__(self, inner: Executor, logger: RequestLogger) -> None:
        self.inner, self.logger = inner, logger
        self.Config, self.config = type(inner.config), inner.config

    @property
    def graph(self) -> Graph:
        """What is served now."""
        return self.inner.graph

    async def start(self) -> None:
        """Make workers, and begin the log."""
        await self.inner.start()
        self.logger.begin(self.graph)

    async def submit(
        self, request: Mapping[str, Any], *, deadline_ms: float | None = None, kind: str = "recommend"
    ) -> Answer:
        """Return the answer to one request, and log what it came to."""
        entry = _Entry(self.logger, request, kind, deadline_ms or self.config.deadline_ms)
        try:
            answer = await self.inner.submit(request, deadline_ms=deadline_ms, kind=kind)
        except M6RecError as error:
            entry.failed(error)
            raise
        entry.answered(answer)
        return answer

    async def stream(
        self, request: Mapping[str, Any], *, deadline_ms: float | None = None, kind: str = "generate"
    ) -> AsyncIterator[str | Answer]:
        """Yield an answer in pieces and at the end whole, and log what it came to."""
        entry = _Entry(self.logger, request, kind, deadline_ms or self.config.deadline_ms)
        try:
            async for piece in self.inner.stream(request, deadline_ms=deadline_ms, kind=kind):
                if not isinstance(piece, str):
                    entry.answered(piece)
                yield piece
        except M6RecError as error:
            entry.failed(error)
            raise

    async def swap(self, graph: Graph) -> None:
        """Serve another graph, and say so in the log."""
        self.logger.begin(graph)
        await self.inner.swap(graph)

    async def drain(self, timeout_s: float = 30.0) -> None:
        """End as the inner one does, and the log with it."""
        await self.inner.drain(timeout_s)
        self.logger.close()

    def report(self) -> dict[str, Any]:
        """Return the inner one's figures."""
        return self.inner.report()


def timed(graph: Graph) -> Graph:
    """Return a graph whose batches say what they took of a core: for a log, where a batch is a single thread's work."""
    stages = (
        stage if stage.kind == "inline" or stage.streams else replace(stage, run=_Timed(stage.run))
        for stage in graph.stages
    )
    return replace(graph, stages=tuple(stages))


@dataclass(frozen=True)
class _Timed:
    """A stage's ``run`` that notes the seconds of a core."""

    run: Run

    def __call__(self, payloads: Sequence[Payload]) -> Sequence[Update | Exception]:
        began = time.thread_time()
        outcomes = self.run(payloads)
        noted = {"cpu_ms": 1000 * (time.thread_time() - began)}
        return [
            outcome if isinstance(outcome, Exception) else {**outcome, "notes": {**outcome.get("notes", {}), **noted}}
            for outcome in outcomes
        ]


class _Entry:
    """A request that is under way to its line in a log."""

    def __init__(self, logger: RequestLogger, request: Mapping[str, Any], kind: str, deadline_ms: float) -> None:
        self.logger, self.request, self.kind, self.deadline_ms = logger, request, kind, deadline_ms
        self.at, self._began = time.time(), time.monotonic()

    def answered(self, answer: Answer) -> None:
        trace = {name: Visit(**_visit(figures)) for name, figures in answer["trace"].items() if "ms" in figures}
        said = {name: value for name, value in answer.items() if name != "trace"}
        self._write("answered", answer["rung"], trace, len(json.dumps(said, default=str)))

    def failed(self, error: M6RecError) -> None:
        self._write(outcome_of(error), "", {})

    def _write(self, outcome: str, rung: str, stages: Mapping[str, Visit], answer_bytes: int = 0) -> None:
        ms, key = 1000 * (time.monotonic() - self._began), self.logger.key(self.kind, self.request)
        asked = (self.at, key, self.kind, self.deadline_ms)
        self.logger.write(Logged(*asked, outcome, ms, answer_bytes, rung, stages, dict(self.request)))


def _visit(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in Visit.__dataclass_fields__ if name in figures}
