"""A plan put to work: settings of a recommender's graph, and a replay of logged requests on it. Knows no search."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from m6rec.errors import DataError, M6RecError
from m6rec.serving.executors.base import Executor
from m6rec.serving.executors.local import LocalConfig, LocalExecutor
from m6rec.serving.graph import Graph
from m6rec.serving.graphs import GraphConfig
from m6rec.serving.planning.load import Arrival, LoadReport
from m6rec.serving.planning.plan import Plan
from m6rec.serving.planning.replay import replay
from m6rec.serving.planning.request_log import RequestLog

# How long a request may take that only warms up.
WARM_MS = 30_000.0


def with_plan(config: GraphConfig, plan: Plan) -> GraphConfig:
    """Return a graph's settings with a plan's; what the plan does not say stays as it is.

    Args:
        config: of :func:`~m6rec.serving.graphs.recommender_graph`.
        plan: as :func:`~m6rec.serving.planning.plan.read_plan` gives it.
    """
    tiers, sizes = config.tiers, plan.cache_bytes
    segments = replace(tiers.segments, memory_bytes=sizes.get("memory", tiers.segments.memory_bytes))
    query, hot = sizes.get("query", tiers.query_bytes), sizes.get("hot", tiers.hot_bytes)
    resized = replace(tiers, query_bytes=query, hot_bytes=hot, segments=segments)
    return replace(config, tiers=resized, plans={**config.plans, **plan.stages})


def logged_arrivals(log: RequestLog, load: float, deadline_ms: float | None) -> list[Arrival]:
    """Return a log's requests as they were, to be sent again.

    Args:
        log: that keeps requests.
        load: times the log's own traffic.
        deadline_ms: how long each has; ``None`` = as long as it had.

    Raises:
        DataError: it does not keep them.
    """
    start = log.requests[0].at
    arrivals = []
    for logged in log.requests:
        if logged.request is None:
            raise DataError("the log keeps no requests to replay; log with: m6rec serve RUN --log LOG --keep-requests")
        within = (deadline_ms or logged.deadline_ms) / 1000
        arrivals.append(Arrival((logged.at - start) / load, logged.request, within, logged.kind))
    return arrivals


def replayed(
    plan: Plan, build: Callable[[Plan], Graph], arrivals: Sequence[Arrival], before: Sequence[Arrival] = ()
) -> LoadReport:
    """Return what becomes of requests under a plan, for real, on the local executor.

    Args:
        plan: to try.
        build: makes the graph, models loaded and caches empty.
        arrivals: in order of time.
        before: asked one after the other, to warm up; not counted.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)

    async def run() -> LoadReport:
        executor: Executor = LocalExecutor(build(plan), LocalConfig(deadline_ms=plan.deadline_ms))
        await executor.start()
        try:
            for arrival in before:
                with contextlib.suppress(M6RecError):
                    await executor.submit(arrival.request, deadline_ms=WARM_MS, kind=arrival.kind)
            return await replay(executor, arrivals)
        finally:
            await executor.drain()

    try:
        return asyncio.run(run())
    finally:
        torch.set_num_threads(threads)
