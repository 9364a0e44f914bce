"""A stage of the pipeline, and the event that travels through it. This module knows no clock, queue or thread."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from m6rec.errors import ConfigError

Payload = dict[str, Any]
"""What is known of a request by now: ``request`` and ``kind`` from the start, ``rung`` from admission on, and whatever
the stages behind it have added."""
Update = Mapping[str, Any]
"""What a stage adds. ``answer`` is what the caller gets; ``notes`` go into the request's trace."""
Run = Callable[[Sequence[Payload]], Sequence[Update | Exception]]
"""A batch in, one outcome each out, in order. An exception as outcome fails that request alone."""


@dataclass(frozen=True)
class StagePlan:
    """How much a stage gets; what the planner searches. Speed and memory only, but for ``limit_ms``.

    Raises:
        ConfigError: lists every impossible value at once.
    """

    workers: int = 1
    """Batches at the same time."""
    max_batch: int = 8
    """Most events in a batch, whatever their slack."""
    max_wait_ms: float = 0.0
    """How long an idle worker waits for a batch to fill; 0 = it takes what is there."""
    queue_cap: int = 64
    """Most events that wait; at the first stage more are refused, at the others the stage before is held back."""
    limit_ms: float = 30_000.0
    """After this a batch counts as hung: its requests fail, and its worker is replaced."""
    spares: int = 4
    """How many hung workers are replaced before the stage is given up and requests are refused."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: got {getattr(self, name)}, expected 1 or more"
            for name in ("workers", "max_batch", "queue_cap")
            if getattr(self, name) < 1
        ]
        problems += [f"max_wait_ms: got {self.max_wait_ms}, expected 0 or more"] if self.max_wait_ms < 0 else []
        problems += [f"limit_ms: got {self.limit_ms}, expected more than 0"] if self.limit_ms <= 0 else []
        problems += [f"spares: got {self.spares}, expected 0 or more"] if self.spares < 0 else []
        if problems:
            raise ConfigError("\n".join(problems))


def _always(payload: Payload) -> bool:
    return True


def _one(payload: Payload) -> float:
    return 1.0


def _any(payload: Payload) -> Hashable:
    return None


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Args:
        name: unlike any other's in its graph.
        run: what it does to a batch; a stage that ``streams`` takes one payload and yields texts, at the end an update.
        parents: stages that have to be through before.
        kind: where it runs. ``inline``: at once, in the scheduler's own thread, without a queue; for what takes
            microseconds. ``thread``: in workers that share memory. ``process``: in processes; ``run`` and what it takes
            and gives have to pickle.
        at_door: runs before admission, so that what it answers is never refused; inline alone.
        streams: whether it hands on its answer piece by piece.
        wants: whether a request needs this stage at all; if not, it passes by. Asked at admission too, when the stages
            before have not run yet.
        size: work that a request brings, in any unit: cost is fitted to it. Asked at admission too.
        bucket: only events of the same bucket are batched together, e.g. by length.
        plan: how much it gets.
    """

    name: str
    run: Any
    parents: tuple[str, ...] = ()
    kind: Literal["inline", "thread", "process"] = "thread"
    at_door: bool = False
    streams: bool = False
    wants: Callable[[Payload], bool] = _always
    size: Callable[[Payload], float] = _one
    bucket: Callable[[Payload], Hashable] = _any
    plan: StagePlan = field(default_factory=StagePlan)

    def __post_init__(self) -> None:
        if self.at_door and self.kind != "inline":
            raise ConfigError(f"stage {self.name!r}: got at_door with kind {self.kind!r}, expected inline")
        if self.streams and self.kind != "thread":
            raise ConfigError(f"stage {self.name!r}: got streams with kind {self.kind!r}, expected thread")


class Sink(Protocol):
    """Where the pieces of a streamed answer go."""

    @property
    def is_open(self) -> bool:
        """Whether anybody listens."""
        ...

    def push(self, piece: str) -> bool:
        """Hand on a piece, and wait while too many are under way; ``False`` = nobody listens any more."""
        ...


@dataclass(eq=False)
class Event:
    """One computation on its way through a graph; several identical requests may wait for it.

    Args:
        number: of the request, counted up.
        payload: what is known by now.
        arrived: seconds on the scheduler's clock.
        deadline: seconds; the latest of those who wait.
        key: what is identical shares it; ``None`` = shares with nobody.
        sink: of a streamed answer.
        rung: number of the ladder's rung that it is answered on.
        trace: stage -> figures.
        through: stages that are behind it.
        entered: stage -> when it came into the queue.
        alone: whether it has to be run in a batch of its own, for a batch with it has failed.
        live: whether anybody still waits.
    """

    number: int
    payload: Payload
    arrived: float
    deadline: float
    key: Hashable | None = None
    sink: Sink | None = None
    rung: int = 0
    trace: dict[str, dict[str, Any]] = field(default_factory=dict)
    through: set[str] = field(default_factory=set)
    entered: dict[str, float] = field(default_factory=dict)
    alone: bool = False
    live: bool = True

    def add(self, stage: str, update: Update) -> None:
        """Take in what a stage has found."""
        self.payload.update({name: value for name, value in update.items() if name != "notes"})
        self.trace.setdefault(stage, {}).update(update.get("notes", {}))


def run_batch(stage: Stage, events: Sequence[Event]) -> Sequence[Update | Exception] | Exception:
    """Return what a stage gives for a batch; an exception alone = it failed as a whole."""
    try:
        if stage.streams:
            return [last_update(stage, event.payload, event.sink) for event in events]
        return list(stage.run([event.payload for event in events]))
    except Exception as error:  # noqa: BLE001 - whatever a stage raises fails its own requests, and nothing else
        return error


def last_update(stage: Stage, payload: Payload, sink: Sink | None) -> Update:
    """Run a stage that streams, hand its pieces on, and return the update that it ends with.

    Raises:
        ConfigError: it ends without one.
    """
    update: Update | None = None
    pieces: Iterator[str | Update] = stage.run(payload)
    for piece in pieces:
        if isinstance(piece, Mapping):
            update = piece
        elif sink is not None and not sink.push(piece):
            break
    if update is None and (sink is None or sink.is_open):
        raise ConfigError(f"stage {stage.name!r} ended its stream without an update")
    return update or {}
