"""Bounded queues that drop what is too late when it is taken out. Knows no thread; times are handed in."""

from collections import deque
from collections.abc import Iterator

from m6rec.serving.stage import Event, Stage


class StageQueue:
    """Events that wait for a stage, first come first served.

    Nothing is ever pushed out: who finds it full waits (inside the pipeline) or is refused (at admission).

    Args:
        stage: whose.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._events: deque[Event] = deque()

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    @property
    def is_full(self) -> bool:
        """Whether nothing more goes in."""
        return len(self._events) >= self.stage.plan.queue_cap

    @property
    def oldest(self) -> float:
        """When the first event came, in seconds."""
        return self._events[0].entered[self.stage.name]

    @property
    def newest(self) -> Event | None:
        """The last event; ``None`` = there is none."""
        return self._events[-1] if self._events else None

    def put(self, event: Event) -> bool:
        """Take an event in, which says itself when it came; ``False`` = full."""
        if self.is_full:
            return False
        self._events.append(event)
        return True

    def put_back(self, event: Event) -> None:
        """Take an event in before all others, full or not: it has been here already."""
        self._events.appendleft(event)

    def drop(self, now: float) -> list[Event]:
        """Remove and return events whose time is over, or for whom nobody waits any more."""
        gone = [event for event in self._events if not event.live or event.deadline <= now]
        if gone:
            self.take(gone)
        return gone

    def take(self, chosen: list[Event]) -> None:
        """Remove events that are in it."""
        taken = set(map(id, chosen))
        self._events = deque(event for event in self._events if id(event) not in taken)
