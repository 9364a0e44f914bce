"""An executor without a model: it answers what it was asked, and does on demand what goes wrong elsewhere."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from m6rec.serving.graph import Graph
from m6rec.serving.stage import Stage

ITEMS = [{"id": "g01", "title": "red shoes", "score": 2.5}, {"id": "g02", "title": "red book", "score": 1.5}]
MADE = {"rung": "full", "version": "v1", "trace": {"rank": {"ms": 3.0, "wait_ms": 0.1, "batch": 1}}}
ANSWERS: dict[str, dict[str, Any]] = {
    **{kind: {"items": ITEMS} for kind in ("recommend", "retrieve", "rank")},
    "score": {"scores": [-3.5]},
    "explain": {"text": "it is red too", "complete": True},
    "create": {"created": [{"answers": {"title": "red lamp"}}]},
    "chat": {"text": "How about red shoes?", "items": ITEMS[:1]},
    "generate": {"texts": [{"text": "a red lamp", "complete": True}]},
}


@dataclass
class FakeExecutor:
    """See the module.

    Args:
        error: what every request gets instead of an answer.
        hang: whether requests are answered at all.
    """

    error: Exception | None = None
    hang: bool = False
    asked: list[tuple[str, dict[str, Any], float | None]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    ready: bool = False
    graph: Graph = field(default_factory=lambda: Graph((Stage("answer", list),), kinds=frozenset(ANSWERS)))

    async def start(self) -> None:
        self.ready = True

    async def submit(self, request, *, deadline_ms=None, kind="recommend"):
        self.asked.append((kind, dict(request), deadline_ms))
        try:
            if self.error is not None:
                raise self.error
            if self.hang:
                await asyncio.sleep(60)
            return {**ANSWERS[kind], **MADE}
        except asyncio.CancelledError:
            self.told.append("cancelled")
            raise

    async def stream(self, request, *, deadline_ms=None, kind="generate"):
        try:
            for word in ("a ", "red ", "lamp"):
                yield word
                if self.hang:
                    await asyncio.sleep(60)
            yield await self.submit(request, deadline_ms=deadline_ms, kind=kind)
        finally:
            self.told.append("stream closed")

    async def swap(self, graph):
        raise NotImplementedError

    async def drain(self, timeout_s=30.0):
        self.ready = False
        self.told.append("drained")

    def report(self):
        stage = {"queued": 2, "running": 1, "done": 9, "run_ms": {"p50": 4.0}}
        tiers = {"query": {"hits": 3, "misses": 4, "used_bytes": 10}}
        return {
            "ready": self.ready,
            "version": "v1",
            "requests": {"answered": 9},
            "stages": {"rank": stage},
            "tiers": tiers,
        }
