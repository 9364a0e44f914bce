"""What the serving bench compares: the same runs, served in one of nine ways by a process of its own.

``python contenders.py RUNS SOCKET NAME`` listens on a Unix socket; a line of JSON is a request, or an order.
"""

import asyncio
import concurrent.futures
import json
import resource
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

import m6rec
from m6rec.api import Recommender
from m6rec.errors import M6RecError, OverloadedError
from m6rec.late_interaction.cache import CacheConfig, SegmentCache, States
from m6rec.late_interaction.scorer import LateScorer
from m6rec.serving.executors.local import LocalExecutor
from m6rec.serving.graph import Graph
from m6rec.serving.graphs import GraphConfig, TierConfig, recommender_graph, warm
from m6rec.serving.planning.plan import read_plan
from m6rec.serving.planning.planned import with_plan
from m6rec.serving.planning.request_log import LoggedExecutor, RequestLogger, timed
from m6rec.serving.stage import StagePlan
from m6rec.serving.stages.recall_answer import RecallConfig
from m6rec.serving.storage import QueryCache

K = 10
# Threads that FastAPI has for endpoints that are plain functions.
SYNC_THREADS = 40
NO_TIERS = TierConfig(query_bytes=0, hot_bytes=0)
# A list is shown while the user goes through it: within a minute, and three events.
RECALL = RecallConfig(events=3)
QUERY = replace(NO_TIERS, query_bytes=32 << 20, recall=RECALL)
ALL_TIERS = TierConfig(segments=CacheConfig(memory_bytes=256 << 20), recall=RECALL)
SINGLE = {name: StagePlan(max_batch=1) for name in ("encode", "retrieve", "filter", "rank")}


@dataclass(frozen=True)
class Contender:
    """One way of serving.

    Args:
        says: in the table.
        config: of the graph; ``None`` = a synchronous server.
        keeps_segments: whether the ranker keeps lower states at all.
        queue: requests that a synchronous server lets wait; ``None`` = any number.
    """

    says: str
    config: GraphConfig | None = None
    keeps_segments: bool = False
    queue: int | None = None


CONTENDERS = {
    "s0": Contender("S0 synchronous"),
    "s0q": Contender("S0 + bounded queue", queue=1),
    # What m6rec.load gives anybody: how much of the gain below is the split model's own, without any serving.
    "s0c": Contender("S0 + bounded queue, segments kept", queue=1, keeps_segments=True),
    "s1": Contender("S1 stages, no batches", GraphConfig(NO_TIERS, degrade=False, plans=SINGLE)),
    "s2": Contender("S2 + batches by slack", GraphConfig(NO_TIERS, degrade=False)),
    "s3": Contender("S3 + query cache", GraphConfig(QUERY, degrade=False)),
    "s4": Contender("S4 + segment tiers", GraphConfig(ALL_TIERS, degrade=False), keeps_segments=True),
    "s5": Contender("S5 + shedding", GraphConfig(ALL_TIERS), keeps_segments=True),
    "s6": Contender("S6 + planned", GraphConfig(ALL_TIERS), keeps_segments=True),
}


class OneRequest:
    """A segment cache that keeps nothing from one request to the next.

    Args:
        version: of the scorer that asks.
    """

    def __init__(self, version: str) -> None:
        self.version, self._own = version, threading.local()

    def begin(self) -> None:
        """Forget this thread's last request."""
        self._own.held = {}

    def get_many(self, keys: Sequence[bytes]) -> list[States | None]:
        return [getattr(self._own, "held", {}).get(key) for key in keys]

    def put_many(self, entries: Mapping[bytes, States]) -> dict[bytes, States]:
        if hasattr(self._own, "held"):
            self._own.held.update(entries)
        return dict(entries)


class Synchronous:
    """A server whose request is one call of a plain function in a pool of threads.

    Args:
        recommender: answers.
        store: of its ranker's segments within a request; ``None`` = the ranker keeps them itself.
        queue: most requests at a time, the running one among them; ``None`` = any number.
    """

    def __init__(self, recommender: Recommender, store: OneRequest | None, queue: int | None) -> None:
        self.recommender, self.store, self.queue, self._under_way = recommender, store, queue, 0
        self._pool = concurrent.futures.ThreadPoolExecutor(1 if queue is not None else SYNC_THREADS)

    async def submit(self, request: dict[str, Any], deadline_ms: float) -> dict[str, Any]:
        if self.queue is not None and self._under_way >= self.queue:
            raise OverloadedError("the queue is full", 1.0)
        self._under_way += 1
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, request)
        finally:
            self._under_way -= 1
        return {"items": found, "rung": "full"}

    def report(self) -> dict[str, Any]:
        return {}

    def _answer(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        if self.store is not None:
            self.store.begin()
        return [vars(item) for item in self.recommender.recommend(request["history"], K)]


class Server:
    """Answers lines of a socket.

    Args:
        runs: folders of the runs.
        name: of the contender.
        log: requests; ``requests`` to answer, and ``before`` to warm up by.
    """

    def __init__(self, runs: Sequence[str], name: str, log: dict[str, Any]) -> None:
        self.contender, self.log = CONTENDERS[name], log
        self.recommender = m6rec.load(*runs)
        self.target: Any = None
        self.graph: Graph | None = None
        # Answers grow old in the log's own time: the load makes its hours minutes.
        self.now = 0.0

    async def reset(self, order: dict[str, Any]) -> dict[str, Any]:
        """Begin a point: no answers kept, idle queues; segments stay, for the log goes on."""
        config, self.now = self.contender.config, 0.0
        if config is None:
            queue = order.get("queue") if self.contender.queue else None
            store = self._kept() if self.contender.keeps_segments else self._without_tiers()
            self.target = Synchronous(self.recommender, store, queue)
            return {}
        if self.target is not None:
            await self.target.drain(5)
        if order.get("plan"):
            config = with_plan(config, read_plan(order["plan"]))
        if self.graph is None:
            self.graph = await asyncio.to_thread(self._made, config)
        size = 0 if order.get("no_hits") else config.tiers.query_bytes
        self.graph.models.answers = QueryCache(size, config.tiers.query_ttl_s, lambda: self.now) if size else None
        graph = timed(self.graph) if order.get("log") else self.graph
        executor = LocalExecutor(replace(graph, close=lambda: None))
        self.target = LoggedExecutor(executor, RequestLogger(order["log"])) if order.get("log") else executor
        await self.target.start()
        return {}

    def _made(self, config: GraphConfig) -> Graph:
        graph = recommender_graph(self.recommender, config)
        if self.contender.keeps_segments:
            warm(graph, self.log["before"])
        else:
            self._without_tiers()
        return graph

    @property
    def _scorer(self) -> LateScorer:
        assert self.recommender.ranker is not None
        assert isinstance(self.recommender.ranker.backbone, LateScorer)
        return self.recommender.ranker.backbone

    def _kept(self) -> None:
        """Give the ranker as much memory for segments as the tiers have, once."""
        if self.target is None:
            self._scorer.use(SegmentCache(self._scorer.version, ALL_TIERS.segments))

    def _without_tiers(self) -> OneRequest:
        scorer = self._scorer
        store = OneRequest(scorer.version)
        scorer.use(store)
        # One a thread: of a request that comes in pieces.
        scorer.num_trunks = SYNC_THREADS if self.contender.config is None else 0
        return store

    async def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        asked = self.log["requests" if order["ask"] >= 0 else "before"][order["ask"]]
        self.now, request = max(self.now, asked["time"]), {"history": asked["history"], "k": K}
        try:
            found = await self.target.submit(request, deadline_ms=order["ms"])
        except M6RecError as error:
            return {"n": order["n"], "error": type(error).__name__}
        return {"n": order["n"], "rung": found["rung"], "items": [item["id"] for item in found["items"]]}

    def used(self) -> dict[str, Any]:
        """Return CPU seconds, memory, and what the executor reports."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used = {"cpu": usage.ru_utime + usage.ru_stime, "at": time.monotonic()}
        # Not the most that getrusage knows of: a process begins with its parent's.
        return {**used, "memory": psutil.Process().memory_info().rss, "report": self.target.report()}

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's lines, each when it is ready."""
        tasks: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            task = asyncio.create_task(self._line(json.loads(line), writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _line(self, order: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if "ask" in order:
            found = await self.ask(order)
        elif "reset" in order:
            found = await self.reset(order)
        else:
            found = self.used()
        writer.write(json.dumps(found).encode() + b"\n")


def hits(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Return tier -> share of what it was asked for between two reports that it had."""
    found = {}
    for name, own in after.get("tiers", {}).items():
        former = before.get("tiers", {}).get(name, {"hits": 0, "misses": 0})
        had, lacked = own["hits"] - former["hits"], own["misses"] - former["misses"]
        found[name] = had / max(1, had + lacked)
    return found


async def serve(runs: Sequence[str], socket: str, name: str, log: dict[str, Any]) -> None:
    server = Server(runs, name, log)
    listener = await asyncio.start_unix_server(server.talk, socket, limit=1 << 24)
    print("ready", flush=True)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    folders, place, contender, log_file = sys.argv[1].split(","), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    asyncio.run(serve(folders, place, contender, json.loads(log_file.read_text())))
