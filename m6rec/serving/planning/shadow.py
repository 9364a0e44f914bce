"""A logged graph without its models: the same stages and ways, for requests that are only what they weigh.

Inside it works the real query cache. Knows no plan's worth and no real clock.

Not known to it: a request that found an old answer, was refused or was answered by less than the whole service takes
the way of another one, of the same key where there is one; and segments' tiers stay as warm as they were.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from m6rec.errors import DataError
from m6rec.serving.graph import Graph
from m6rec.serving.planning.load import Arrival
from m6rec.serving.planning.plan import Plan
from m6rec.serving.planning.request_log import Logged, LogHead, RequestLog
from m6rec.serving.planning.simulator import Clock
from m6rec.serving.stage import Payload, Stage, Update
from m6rec.serving.storage import QueryCache

DOOR, RESPOND = "door", "respond"
Shares = Mapping[str, Mapping[str, float]]
"""Rung -> stage -> a request's work there, as a share of its work for the whole service."""


@dataclass(frozen=True)
class Traffic:
    """Requests of a log, as the shadow takes them.

    Args:
        log: where they come from.
    """

    log: RequestLog

    @cached_property
    def kinds(self) -> frozenset[str]:
        """What is asked for."""
        return frozenset(logged.kind for logged in self.log.requests)

    @property
    def whole(self) -> str:
        """Name of the rung of whole service."""
        return self.log.head.ladder.rungs[0].name

    @cached_property
    def _ways(self) -> dict[str, dict[str, float]]:
        """Key -> stage -> size, of what was answered by the whole service."""
        answered = (logged for logged in self.log.requests if logged.rung == self.whole)
        return {logged.key: {name: visit.size for name, visit in logged.stages.items()} for logged in answered}

    def arrivals(self, load: float, deadline_ms: float | None = None) -> list[Arrival]:
        """Return the requests in their order.

        Args:
            load: times the log's own traffic: gaps between requests are that much shorter.
            deadline_ms: how long each has; ``None`` = as long as it had.

        Raises:
            DataError: the whole service answered none.
        """
        if not self._ways:
            raise DataError(f"no request of the log was answered by the whole service ({self.whole!r}); log anew")
        start = self.log.requests[0].at
        return [
            Arrival(
                (logged.at - start) / load,
                self._request(logged),
                (deadline_ms or logged.deadline_ms) / 1000,
                logged.kind,
            )
            for logged in self.log.requests
            if logged.outcome != "bad"
        ]

    def _request(self, logged: Logged) -> dict[str, Any]:
        way = self._ways.get(logged.key)
        if way is None:
            others = self._keys.get(logged.kind) or sorted(self._ways)
            way = self._ways[others[zlib.crc32(logged.key.encode()) % len(others)]]
        return {"key": f"{logged.kind} {logged.key}".encode(), "bytes": logged.answer_bytes, "way": way}

    @cached_property
    def _keys(self) -> dict[str, list[str]]:
        """Kind -> keys of those of it whose way is known."""
        found: dict[str, set[str]] = {}
        for logged in self.log.requests:
            if logged.key in self._ways:
                found.setdefault(logged.kind, set()).add(logged.key)
        return {kind: sorted(keys) for kind, keys in found.items()}


def shadow_graph(
    head: LogHead, plan: Plan, shares: Shares, clock: Clock, kinds: frozenset[str] = frozenset({"recommend"})
) -> Graph:
    """Return a logged graph with the plan's settings, to be simulated.

    Args:
        head: the graph's.
        plan: what each stage gets; a stage that it does not name gets what it got.
        shares: what lower rungs spare; a rung that was never seen spares nothing.
        clock: of the simulation.
        kinds: of requests that will be simulated.
    """
    room = plan.cache_bytes.get("query", head.query_bytes)
    cache = QueryCache(room, head.query_ttl_s, clock) if room and head.query_ttl_s else None
    queued = [stage for stage in head.stages if stage.kind != "inline"]
    stages = [
        Stage(
            stage.name,
            _pass,
            _queued_before(head, stage.name) or (DOOR,),
            wants=_Wants(stage.name),
            size=_Size(stage.name, shares),
            bucket=_depth,
            plan=plan.stages.get(stage.name, stage.plan),
        )
        for stage in queued
    ]
    door = Stage(DOOR, _Door(cache), kind="inline", at_door=True)
    respond = Stage(RESPOND, _Respond(cache), (DOOR, *(stage.name for stage in queued)), kind="inline")
    return Graph((door, *stages, respond), kinds=kinds, version=head.version, ladder=head.ladder)


def _queued_before(head: LogHead, name: str) -> tuple[str, ...]:
    """Return the nearest queued stages before one, through inline ones."""
    by_name = {stage.name: stage for stage in head.stages}
    found: dict[str, None] = {}
    for parent in by_name[name].parents:
        nearest = (parent,) if by_name[parent].kind != "inline" else _queued_before(head, parent)
        found |= dict.fromkeys(nearest)
    return tuple(found)


def _pass(payloads: Sequence[Payload]) -> list[Update]:
    return [{} for _ in payloads]


def _depth(payload: Payload) -> int | None:
    """Return the layers that are run: no batch has two depths."""
    depth: int | None = payload["rung"].depth
    return depth


@dataclass(frozen=True)
class _Wants:
    """Whether a request goes through a stage: as it did, and where a model answers at all."""

    stage: str

    def __call__(self, payload: Payload) -> bool:
        return bool(payload["rung"].model) and self.stage in payload["request"]["way"]


@dataclass(frozen=True)
class _Size:
    """What a request weighs in a stage, on the rung that it is on."""

    stage: str
    shares: Shares

    def __call__(self, payload: Payload) -> float:
        share = self.shares.get(payload["rung"].name, {}).get(self.stage, 1.0)
        return float(payload["request"]["way"].get(self.stage, 0.0)) * share


@dataclass(frozen=True)
class _Door:
    """Answers from the query cache, or lets in."""

    cache: QueryCache | None

    def __call__(self, payloads: Sequence[Payload]) -> list[Update]:
        return [self._look(payload["request"]["key"]) for payload in payloads]

    def _look(self, key: bytes) -> Update:
        found = None if self.cache is None else self.cache.get([key], None)
        return {"key": key} if found is None else {"answer": found, "made_by": "cache"}


@dataclass(frozen=True)
class _Respond:
    """Answers, and keeps what a model has answered."""

    cache: QueryCache | None

    def __call__(self, payloads: Sequence[Payload]) -> list[Update]:
        for payload in payloads:
            if self.cache is not None and payload["rung"].model:
                self.cache.put(payload["request"]["key"], {}, None, payload["request"]["bytes"])
        return [{"answer": {}} for _ in payloads]
