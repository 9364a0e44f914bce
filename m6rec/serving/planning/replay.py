"""Requests sent to a real executor at their own times: an open loop. Knows no graph.

Latency counts from when a request was due, not from when it was sent, so that a generator that falls behind does not
flatter the server (coordinated omission).
"""

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from m6rec.errors import M6RecError
from m6rec.serving.executors.base import Executor
from m6rec.serving.planning.load import Arrival, LoadReport, outcome_of


async def replay(executor: Executor, arrivals: Sequence[Arrival]) -> LoadReport:
    """Return what becomes of requests.

    Args:
        executor: started.
        arrivals: in order of time; the first one is due now.

    Returns:
        The report; CPU seconds are of this process, the generator's own among them.
    """
    loop = asyncio.get_running_loop()
    latency = np.full(len(arrivals), np.nan)
    outcomes, rungs = [""] * len(arrivals), [""] * len(arrivals)
    start, cpu = loop.time() - (arrivals[0].at if arrivals else 0.0), time.process_time()

    async def ask(number: int) -> None:
        arrival = arrivals[number]
        late = loop.time() - (start + arrival.at)
        left_ms = 1000 * (arrival.within - late)
        try:
            found = await executor.submit(arrival.request, deadline_ms=max(1e-3, left_ms), kind=arrival.kind)
        except M6RecError as error:
            outcomes[number] = outcome_of(error)
            return
        latency[number] = loop.time() - (start + arrival.at)
        outcomes[number], rungs[number] = "answered", found["rung"]

    async with asyncio.TaskGroup() as asked:
        for number, arrival in enumerate(arrivals):
            # Also where it is due already: others get their turn.
            await asyncio.sleep(max(0.0, start + arrival.at - loop.time()))
            asked.create_task(ask(number))
    at = np.array([arrival.at for arrival in arrivals])
    return LoadReport(at, latency, tuple(outcomes), tuple(rungs), time.process_time() - cpu)
