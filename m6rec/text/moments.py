"""Moments in words: how long ago, how much later, which season and time of day.

The words themselves come from a data template (keys ``time`` and ``calendar``). This module knows no event.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

# Largest first; from how many seconds on a unit is used, and its length in seconds.
_UNITS = (
    ("year", 365 * 86_400, 365 * 86_400),
    ("month", 30 * 86_400, 30 * 86_400),
    ("week", 7 * 86_400, 7 * 86_400),
    ("day", 86_400, 86_400),
    ("hour", 3_600, 3_600),
    ("minute", 60, 60),
)
UNITS = tuple(name for name, _, _ in _UNITS)


@dataclass(frozen=True)
class Clock:
    """Puts spans of time into words.

    Args:
        units: unit -> (one, many), e.g. ``{"hour": ("an hour", "{} hours")}``; ``{}`` takes the number.
        numbers: words for 0, 1, 2, ...; larger numbers are written in digits.
        ago: e.g. ``"{} ago"``, and ``now`` for less than a minute.
        now: e.g. ``"just now"``.
        later: e.g. ``"{} later"``.
        then: for what follows within one session, e.g. ``"then"`` or nothing.
        session_minutes: events closer than this follow each other without saying how much later.
    """

    units: Mapping[str, Sequence[str]]
    numbers: Sequence[str]
    ago: str
    now: str
    later: str
    then: str
    session_minutes: float

    def since(self, seconds: float) -> str:
        """Return how long ago something was; a moment in the future counts as now."""
        span = self._span(seconds)
        return self.ago.format(span) if span else self.now

    def after(self, seconds: float) -> str:
        """Return how much later than the event before it something was."""
        span = self._span(seconds) if seconds >= 60 * self.session_minutes else ""
        return self.later.format(span) if span else self.then

    def _span(self, seconds: float) -> str:
        # Coarse on purpose: few different stubs exist, so nearly all of them are cached.
        for name, least, length in _UNITS:
            if seconds >= least:
                count = int(seconds // length)
                if name == "minute" and count > 10:
                    count = count // 10 * 10
                one, many = self.units[name]
                return one if count == 1 else many.format(self._number(count))
        return ""

    def _number(self, count: int) -> str:
        return self.numbers[count] if count < len(self.numbers) else str(count)


@dataclass(frozen=True)
class Calendar:
    """Names seasons, months, weekdays and times of day.

    Args:
        seasons: winter, spring, summer, autumn.
        months: twelve, January first.
        weekdays: seven, Monday first.
        dayparts: night (0-5 h), morning (6-11 h), afternoon (12-17 h), evening (18-23 h).
    """

    seasons: Sequence[str]
    months: Sequence[str]
    weekdays: Sequence[str]
    dayparts: Sequence[str]

    def describe(self, time: float, hemisphere: str | None = None) -> dict[str, str]:
        """Return ``month``, ``weekday`` and ``daypart`` of Unix seconds ``time``, in UTC.

        Args:
            time: Unix seconds.
            hemisphere: ``"north"`` or ``"south"`` gives ``season`` too; nobody's season is guessed.
        """
        moment = datetime.fromtimestamp(time, UTC)
        turn = {"north": 0, "south": 2}.get(hemisphere or "")
        season = {} if turn is None else {"season": self.seasons[(moment.month % 12 // 3 + turn) % 4]}
        return {
            **season,
            "month": self.months[moment.month - 1],
            "weekday": self.weekdays[moment.weekday()],
            "daypart": self.dayparts[moment.hour // 6],
        }
