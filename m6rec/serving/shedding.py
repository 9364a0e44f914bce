"""What is given up under load, and when: a ladder of rungs, and the controller that walks it.

Knows neither stages nor a clock: times are handed in, so that the simulator walks the very same ladder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from m6rec.errors import ConfigError


@dataclass(frozen=True)
class Rung:
    """One way of answering.

    Args:
        name: what an answer says that it was made by.
        candidates: how many items are retrieved for the ranker; ``None`` = as many as the graph has.
        depth: layers that the ranker runs; ``None`` = all.
        model: whether a model runs at all; if not, an old answer or the most popular items are given.
        kinds: of requests that it spares anything, or can answer at all; empty = all. Others never come to it.
    """

    name: str
    candidates: int | None = None
    depth: int | None = None
    model: bool = True
    kinds: tuple[str, ...] = ()


WHOLE = Rung("full")


@dataclass(frozen=True)
class SheddingConfig:
    """When the ladder is walked; changes what is answered under load.

    Raises:
        ConfigError: lists every impossible value at once.
    """

    interval_ms: float = 250.0
    """How often the level is set."""
    admit: float = 0.9
    """A request is taken where it is expected to need at most this share of its time."""
    high: float = 0.8
    """Down above this share of a request's time: of the slowest twentieth, or of what the longest queue will take."""
    low: float = 0.5
    """Up below this share."""
    add: float = 0.05
    """What the level gains in a calm interval, of 1."""
    factor: float = 0.7
    """What the level is multiplied by in a pressed one."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: got {getattr(self, name)}, expected more than 0 and at most 1"
            for name in ("admit", "add", "factor")
            if not 0 < getattr(self, name) <= 1
        ]
        problems += [f"interval_ms: got {self.interval_ms}, expected more than 0"] if self.interval_ms <= 0 else []
        problems += [] if 0 <= self.low <= self.high else [f"low: got {self.low}, expected 0 to high ({self.high})"]
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass(frozen=True)
class Ladder:
    """Rungs from whole service down; below the last one a request is refused.

    Args:
        rungs: those with a model first, at least one.
        config: when it is walked.

    Raises:
        ConfigError: no rung with a model, one below a rung without, or a first one that is not for all.
    """

    rungs: Sequence[Rung] = (WHOLE,)
    config: SheddingConfig = field(default_factory=SheddingConfig)

    def __post_init__(self) -> None:
        models = [rung.model for rung in self.rungs]
        if not any(models) or models != sorted(models, reverse=True):
            raise ConfigError(f"got rungs {[rung.name for rung in self.rungs]}, expected those with a model first")
        if self.rungs[0].kinds:
            raise ConfigError(
                f"rung {self.rungs[0].name!r}: got kinds {self.rungs[0].kinds}, expected the first for all"
            )

    @property
    def steered(self) -> int:
        """Number of rungs with a model: those that the controller chooses among."""
        return sum(rung.model for rung in self.rungs)

    def down(self, kind: str, start: int) -> list[int]:
        """Return the numbers of the rungs that a kind of request can be answered on, the best first.

        Args:
            kind: of request.
            start: number of the rung that there is time for; whom it does not concern stays on one above.
        """
        own = [number for number, rung in enumerate(self.rungs) if not rung.kinds or kind in rung.kinds]
        first = max(number for number in own if number <= start)
        return [number for number in own if number >= first]


class Controller:
    """Adds to the level of service while stages keep up, and multiplies it down when one does not.

    It chooses among the rungs that run a model. Those without one are for requests that even the lowest of these cannot
    answer in time: admission finds out by the stages' own cost.

    Args:
        ladder: to walk.
        now: seconds.

    Attributes:
        level: 1 = whole service.

    Source: AIMD admission by each stage's response times: SEDA (Welsh et al., SOSP 2001), section 5; JIZHI
        (arXiv 2106.01674): load shedding by feedback of the stages.
    Differs: what is steered is how much work a request gets, before whether it is taken.
    """

    def __init__(self, ladder: Ladder, now: float) -> None:
        self.ladder, self.level = ladder, 1.0
        self._next = now + ladder.config.interval_ms / 1000
        self._shares: list[float] = []

    @property
    def rung(self) -> int:
        """Number of the rung that a new request starts from."""
        return min(self.ladder.steered - 1, int((1 - self.level) * self.ladder.steered))

    def saw(self, share: float) -> None:
        """Take note of a request that came to its end after a share of its time; above 1 = too late."""
        self._shares.append(share)

    def is_due(self, now: float) -> bool:
        """Whether the interval is over."""
        return now >= self._next

    def adjust(self, now: float, backlog: float) -> None:
        """Set the level, where its interval is over.

        Args:
            now: seconds.
            backlog: what the longest queue will take, as a share of a request's time.
        """
        if not self.is_due(now):
            return
        config = self.ladder.config
        slow = sorted(self._shares)[int(0.95 * len(self._shares))] if self._shares else 0.0
        if max(slow, backlog) > config.high:
            # A level below the last rung's would only take longer to come back from.
            self.level = max(0.5 / self.ladder.steered, config.factor * self.level)
        elif max(slow, backlog) < config.low:
            self.level = min(1.0, self.level + config.add)
        self._next, self._shares = now + config.interval_ms / 1000, []
