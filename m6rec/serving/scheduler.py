"""The pipeline as a machine without a clock: told what happens and when, it says which batches begin.

The same machine drives real workers (:mod:`m6rec.serving.executors.local`) and the planner's simulated ones. It knows
no thread, no model and no network.
"""

import heapq
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from m6rec.errors import ConfigError, DeadlineError, M6RecError, OverloadedError, ServingError, StageError, nearest
from m6rec.serving.batcher import Fire, decide
from m6rec.serving.graph import Graph
from m6rec.serving.lane import Batch, Lane
from m6rec.serving.report import Tally, percentiles
from m6rec.serving.shedding import Controller
from m6rec.serving.stage import Event, Payload, Sink, Stage, Update

logger = logging.getLogger(__name__)
Done = Callable[[dict[str, Any] | M6RecError], None]
Outcomes = Sequence[Update | Exception] | Exception


@dataclass(eq=False)
class Ticket:
    """One caller's claim to an answer.

    Args:
        event: what is computed; shared by identical requests.
        arrived: seconds.
        deadline: seconds; this caller's own.
        done: called once, with the answer or why there is none.
    """

    event: Event
    arrived: float
    deadline: float
    done: Done
    is_open: bool = field(default=True)


class Scheduler:
    """Runs events through a graph: admission, queues, batches, joins, deadlines, single flight, the ladder.

    Every method takes the time in seconds, on any clock that does not run backwards. After each call ask
    :meth:`ready` for what begins now, and come back at :meth:`wake` at the latest.

    Args:
        graph: to run.
        now: seconds.

    Source: JIZHI (arXiv 2106.01674), staged event-driven pipeline; SEDA (Welsh et al., SOSP 2001).
    Differs: refuses at admission alone, by the stages' fitted cost; identical requests in flight are computed once.
    """

    def __init__(self, graph: Graph, now: float) -> None:
        self.graph, self.tally = graph, Tally(graph)
        self.lanes = {stage.name: Lane(stage) for stage in graph.order if stage.kind != "inline"}
        self.controller = Controller(graph.ladder, now)
        self._numbers = itertools.count()
        self._tickets: dict[Event, list[Ticket]] = {}
        self._flights: dict[Any, Event] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []

    @property
    def in_flight(self) -> int:
        """Number of events that somebody waits for."""
        return len(self._tickets)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits and nothing runs but what hangs."""
        return not self._tickets and not any(lane.running for lane in self.lanes.values())

    # ---- from outside

    def submit(
        self, request: Mapping[str, Any], kind: str, now: float, deadline: float, done: Done, sink: Sink | None = None
    ) -> Ticket:
        """Take a request; ``done`` may be called before this returns.

        Raises:
            ConfigError: an unknown kind.
        """
        if kind not in self.graph.kinds:
            raise ConfigError(f"unknown kind of request {kind!r}{nearest(kind, self.graph.kinds)}")
        rung = self.graph.ladder.down(kind, self.controller.rung)[0]
        payload: Payload = {"request": request, "kind": kind, "rung": self.graph.ladder.rungs[rung]}
        event = Event(next(self._numbers), payload, now, deadline, sink=sink, rung=rung)
        ticket = Ticket(event, now, deadline, done)
        self._tickets[event] = [ticket]
        self._advance(event, now, at_door=True)
        if ticket.is_open and not self._shares(ticket):
            self._admit(ticket, now)
        if ticket.is_open:
            heapq.heappush(self._deadlines, (deadline, next(self._numbers), ticket))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a caller; what nobody else waits for is not computed further."""
        if ticket.is_open:
            self.tally.count("cancelled")
            self._leave(ticket)

    def finished(self, batch: Batch, outcomes: Outcomes, now: float) -> None:
        """Take in what a batch has come to."""
        lane = self.lanes[batch.stage.name]
        if lane.end(batch):
            self._settle(batch, outcomes, now)

    def ready(self, now: float) -> list[Batch]:
        """Return the batches that begin now; every one has to be run and given to :meth:`finished`."""
        self._expire(now)
        if self.controller.is_due(now):
            self.controller.adjust(now, max((lane.share(now) for lane in self.lanes.values()), default=0.0))
        found: list[Batch] = []
        # Children first: the room that they make lets their parents go on at once.
        for stage in reversed(self.graph.order):
            if stage.name in self.lanes:
                found += self._begin(self.lanes[stage.name], now)
        return found

    def wake(self, now: float) -> float | None:
        """Return when to come back though nothing happens, in seconds; ``None`` = nobody waits."""
        times = [lane.wake for lane in self.lanes.values() if lane.wake is not None]
        times += [lane.hung_at for lane in self.lanes.values() if lane.running]
        times += [self._deadlines[0][0]] if self._deadlines else []
        return max(now, min(times)) if times else None

    def give_up(self, error: M6RecError) -> None:
        """Answer everybody who still waits with an error."""
        for event in list(self._tickets):
            self._fail(event, error)

    def report(self) -> dict[str, Any]:
        """Return all figures as plain values (see :meth:`m6rec.serving.executors.base.Executor.report`)."""
        return {
            "ready": not any(lane.is_dead for lane in self.lanes.values()),
            "version": self.graph.version,
            "requests": dict(self.tally.outcomes),
            "rungs": dict(self.tally.rungs),
            "latency_ms": percentiles(self.tally.latency_ms),
            "level": self.controller.level,
            "in_flight": self.in_flight,
            "stages": {s.name: self.tally.of_stage(s.name, self.lanes.get(s.name)) for s in self.graph.order},
            "tiers": self.graph.tiers(),
        }

    # ---- admission

    def _shares(self, ticket: Ticket) -> bool:
        """Let a caller wait for an identical request that is in flight; ``False`` = there is none."""
        key = ticket.event.payload.get("key")
        if key is None or ticket.event.sink is not None:
            return False
        other = self._flights.get(key)
        if other is None:
            ticket.event.key, self._flights[key] = key, ticket.event
            return False
        del self._tickets[ticket.event]
        ticket.event = other
        other.deadline = max(other.deadline, ticket.deadline)
        self._tickets[other].append(ticket)
        self.tally.count("shared")
        return True

    def _admit(self, ticket: Ticket, now: float) -> None:
        """Let an event into the pipeline on the best rung that is in time, or refuse it."""
        event, rungs, wait = ticket.event, self.graph.ladder.rungs, 0.0
        allowed = self.graph.ladder.config.admit * (event.deadline - now)
        for lane in self.lanes.values():
            if lane.queue.is_full:
                self._drop(lane, now)
        start = event.rung
        for number in self.graph.ladder.down(event.payload["kind"], start):
            event.rung, event.payload["rung"] = number, rungs[number]
            path = self.graph.path(event.payload)
            wait = self._time_for(event.payload, path, now)
            # What nobody else waits for may try in any case: or a cost that was once too high would never be seen anew.
            is_free = number == start and all(self.lanes[stage.name].is_idle for stage in path)
            if self._has_room(path) and (wait <= allowed or is_free):
                for stage in path:
                    self.lanes[stage.name].expect(event)
                self._advance(event, now)
                return
        stuck = next((lane.stage.name for lane in self.lanes.values() if lane.is_dead), None)
        reason = f"stage {stuck!r} hangs" if stuck else "every queue that could answer in time is full"
        self.tally.count("refused")
        self._fail(event, OverloadedError(reason, max(0.1, min(30.0, wait))))

    def _has_room(self, path: Sequence[Stage]) -> bool:
        """Whether no stage on a way is given up, and those that it begins with are not full."""
        later = {stage.name for first in path for stage in self.graph.after[first.name]}
        entries = [self.lanes[stage.name] for stage in path if stage.name not in later]
        return not any(self.lanes[stage.name].is_dead for stage in path) and not any(e.queue.is_full for e in entries)

    def _time_for(self, payload: Payload, path: Sequence[Stage], now: float) -> float:
        """Return the seconds that a request will take through all stages on its way, behind those that are there."""
        lanes = [self.lanes[stage.name] for stage in path]
        return sum(lane.backlog(now) + lane.batch_seconds(payload) for lane in lanes)

    # ---- on the way

    def _advance(self, event: Event, now: float, at_door: bool = False) -> None:
        """Bring an event as far as it comes: through stages that need no queue, and into those of the next."""
        while event.live and "answer" not in event.payload:
            inline, queued = self._next(event, at_door)
            for stage in queued:
                self.lanes[stage.name].enter(event, now)
            if not inline:
                break
            for stage in inline:
                self._run_inline(stage, event, now)
        if event.live and "answer" in event.payload:
            self._resolve(event, now)
        elif event.live and not at_door and len(event.through) == len(self.graph.stages):
            self._fail(event, StageError(self.graph.order[-1].name, "ended without an answer"))

    def _next(self, event: Event, at_door: bool) -> tuple[list[Stage], list[Stage]]:
        stages = self.graph.next(event, at_door)
        return [s for s in stages if s.kind == "inline"], [s for s in stages if s.kind != "inline"]

    def _run_inline(self, stage: Stage, event: Event, now: float) -> None:
        if not event.live:
            return
        event.entered[stage.name] = now
        try:
            outcome: Update | Exception = stage.run([event.payload])[0]
        except Exception as error:  # noqa: BLE001 - whatever a stage raises fails this request alone
            outcome = error
        self.tally.passed(stage.name)
        self._take(stage, event, outcome)

    def _take(self, stage: Stage, event: Event, outcome: Update | Exception) -> None:
        """Put what a stage has found into an event, or fail it."""
        if isinstance(outcome, Exception):
            self._fail(event, self._told(stage, outcome))
            return
        event.add(stage.name, outcome)
        event.through.add(stage.name)

    def _told(self, stage: Stage, error: Exception) -> M6RecError:
        """Return an error as the caller gets it: ours as they are, all others without their inner words."""
        if isinstance(error, M6RecError):
            return error
        logger.error("stage %s failed", stage.name, exc_info=error)
        self.tally.failed(stage.name)
        return StageError(stage.name, f"failed with {type(error).__name__}")

    def _begin(self, lane: Lane, now: float) -> list[Batch]:
        found: list[Batch] = []
        lane.wake = None
        while lane.has_worker and not self._is_held(lane):
            self._drop(lane, now)
            if not len(lane.queue):
                break
            chosen = decide(lane.queue, lane.cost, now, self._reserve(lane))
            if not isinstance(chosen, Fire):
                lane.wake = chosen.until
                break
            found.append(lane.begin(chosen.events, now))
        return found

    def _is_held(self, lane: Lane) -> bool:
        """Whether a stage after this one is overfull: what it would make could not go on."""
        later = (self.lanes.get(stage.name) for stage in self.graph.after[lane.stage.name])
        return any(each is not None and each.is_overfull for each in later)

    def _reserve(self, lane: Lane) -> float:
        """Return the seconds that the first event of a queue needs in the stages after this one."""
        payload = next(iter(lane.queue)).payload
        later = [stage for stage in self.graph.after[lane.stage.name] if stage.name in self.lanes]
        return sum(self.lanes[s.name].cost.cost(s.size(payload)) for s in later if s.wants(payload))

    def _drop(self, lane: Lane, now: float) -> None:
        for event in lane.queue.drop(now):
            self.tally.dropped(lane.stage.name)
            if event.live:
                self._fail(event, DeadlineError(1000 * (event.deadline - event.arrived)))
        lane.let_in()

    def _settle(self, batch: Batch, outcomes: Outcomes, now: float) -> None:
        """Give every event of a batch its outcome, and bring it on."""
        stage, lane = batch.stage, self.lanes[batch.stage.name]
        if isinstance(outcomes, Exception) and len(batch.events) > 1:
            # One of them did it: each gets a batch of its own, and only the culprit fails.
            for event in reversed(batch.events):
                event.alone = True
                lane.queue.put_back(event)
            return
        if isinstance(outcomes, Exception):
            outcomes = [outcomes]
        if len(outcomes) != len(batch.events):
            outcomes = [StageError(stage.name, f"gave {len(outcomes)} answers for {len(batch.events)} requests")]
            outcomes = list(outcomes) * len(batch.events)
        for event in batch.events:
            lane.forget(event)
        lane.cost.saw(batch.size, now - batch.began)
        self.tally.ran(stage.name, batch, now)
        for event, outcome in zip(batch.events, outcomes, strict=True):
            event.alone = False
            event.trace[stage.name] = batch.figures(event, now)
            if event.live:
                self._take(stage, event, outcome)
                self._advance(event, now)

    # ---- ends

    def _expire(self, now: float) -> None:
        """Answer those whose time is over, wherever their events are, and give up batches that hang."""
        for lane in self.lanes.values():
            for batch in lane.hanging(now):
                logger.error("stage %s hangs on a batch of %d", lane.stage.name, len(batch.events))
                for event in batch.events:
                    if event.live:
                        self._fail(event, StageError(lane.stage.name, "hangs"))
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].is_open):
            _, _, ticket = heapq.heappop(self._deadlines)
            if ticket.is_open:
                self._late(ticket)

    def _late(self, ticket: Ticket) -> None:
        self.tally.count("expired")
        self.controller.saw(2.0)
        self._leave(ticket)
        ticket.done(DeadlineError(1000 * (ticket.deadline - ticket.arrived)))

    def _leave(self, ticket: Ticket) -> None:
        """Take one caller from an event, and the event out of flight with the last one."""
        ticket.is_open = False
        waiting = self._tickets[ticket.event]
        waiting.remove(ticket)
        if not waiting:
            self._close(ticket.event)

    def _close(self, event: Event) -> list[Ticket]:
        event.live = False
        for lane in self.lanes.values():
            lane.forget(event)
        if event.key is not None:
            del self._flights[event.key]
        return self._tickets.pop(event)

    def _resolve(self, event: Event, now: float) -> None:
        rung = event.payload.get("made_by", event.payload["rung"].name)
        for ticket in self._close(event):
            ticket.is_open = False
            self.tally.answered(rung, now - ticket.arrived)
            self.controller.saw((now - ticket.arrived) / max(1e-9, ticket.deadline - ticket.arrived))
            made = {"rung": rung, "version": self.graph.version, "trace": event.trace}
            ticket.done({**event.payload["answer"], **made})

    def _fail(self, event: Event, error: M6RecError) -> None:
        for ticket in self._close(event):
            ticket.is_open = False
            if isinstance(error, DeadlineError):
                self.tally.count("expired")
                self.controller.saw(2.0)
            elif not isinstance(error, OverloadedError):
                self.tally.count("failed" if isinstance(error, ServingError) else "bad")
            ticket.done(error)
