"""Which scene an example is of: a rule from what is known before the answer is.

A scene is a season, a part of the day, a place, a domain, a genre: whatever a recommender's requests split into. This
module knows no task and no model.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import NO_TIME, Judgements
from m6rec.data.store import Dataset
from m6rec.errors import ConfigError, DataError

OTHER = "other"
_MONTHS = "january february march april may june july august september october november december"
TIMES: dict[str, tuple[str, ...]] = {
    "season": ("winter", "spring", "summer", "autumn"),
    "month": tuple(_MONTHS.split()),
    "weekday": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "daypart": ("night", "morning", "afternoon", "evening"),
}
"""What a moment can be told by, and the names of its scenes."""
_DAYPART = 6 * 3600
_ANSWERS = ("value", "verb")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class SceneConfig:
    """What splits the examples into scenes; all settings change results.

    Raises:
        ConfigError: no such rule, or one that says nothing, or too much.
    """

    by: str
    """What tells scenes apart: `time.season` (of the northern half), `time.month`, `time.weekday`, `time.daypart` (all
    in UTC), or a column of the candidate, the user or the event, e.g. `item.category`, `user.place`, `event.page`."""
    names: tuple[str, ...] = ()
    """The column's values that make a scene each; all others together are `other`. A cell with several labels (`a|b`,
    `a > b`, a list) is of the first that is named here. Times have names of their own."""
    sampling: Literal["examples", "sqrt"] = "examples"
    """Whether an epoch takes every example once (`examples`), or as many, but of each scene in proportion to the square
    root of its size (`sqrt`): small scenes repeat theirs, large ones take turns."""

    def __post_init__(self) -> None:
        table, _, column = self.by.partition(".")
        if table not in ("time", "item", "user", "event") or not column or (table == "time" and column not in TIMES):
            raise ConfigError(
                f"by: got {self.by!r}, expected time.{', time.'.join(TIMES)}, or a column such as item.category, "
                "user.place or event.page"
            )
        if table == "event" and column in _ANSWERS:
            raise ConfigError(f"by: got {self.by!r}, which is what is to be predicted; expected what is known before")
        if table == "time" and self.names:
            raise ConfigError(f"names: got {list(self.names)}, expected none, for {self.by} has its own")
        if table != "time" and (not self.names or len({*self.names, OTHER}) <= len(self.names)):
            raise ConfigError(
                f"names: got {list(self.names)}, expected values of {self.by}, each once (and not {OTHER!r}, which is "
                "all the rest); set e.g. names=[first, second]"
            )

    @property
    def scenes(self) -> tuple[str, ...]:
        """Return the name of every scene; a scene's number is its place among them."""
        table, _, column = self.by.partition(".")
        return (*(TIMES[column] if table == "time" else self.names), OTHER)


class SceneRule:
    """Tells the scene of labelled pairs, and of single requests.

    Args:
        config: by what.
    """

    def __init__(self, config: SceneConfig) -> None:
        self.config, self.scenes = config, config.scenes
        self.table, _, self.column = config.by.partition(".")
        self._numbers = {name: number for number, name in enumerate(self.scenes)}

    def of_pairs(self, dataset: Dataset, pairs: Judgements) -> NDArray[np.int16]:
        """Return ``[num_pairs]`` the number of each pair's scene.

        Raises:
            DataError: there are no events behind impressions.
        """
        cells, places = self._cells(dataset, pairs)
        return np.array([self._number(cell) for cell in cells], dtype=np.int16)[places]

    def check(self, dataset: Dataset, pairs: Judgements) -> None:
        """Refuse to learn from pairs that are all of the rest.

        Args:
            dataset: theirs.
            pairs: with their scenes.

        Raises:
            DataError: a column has none of the values that were named.
        """
        if self.table == "time" or not len(pairs) or np.any(pairs.scenes != self._numbers[OTHER]):
            return
        found = Counter(label for cell in self._cells(dataset, pairs)[0] for label in _labels(cell)).most_common(12)
        raise DataError(
            f"got no pair of the scenes {', '.join(self.scenes[:-1])}, expected some; {self.config.by} holds "
            f"{', '.join(name for name, _ in found) or 'nothing'}"
        )

    def of_request(self, items: Sequence[Record], context: Record) -> NDArray[np.int16]:
        """Return the number of each candidate's scene in one request; what is not said counts as ``other``.

        Args:
            items: the candidates' fields.
            context: what is known besides: ``time`` (Unix seconds), the user's fields, the event's.

        Raises:
            DataError: a time that is none.
        """
        if self.table == "item":
            cells = [item.get(self.column) for item in items]
        else:
            known = _told_moment(context.get("time")) if self.table == "time" else context
            cells = [known.get(self.column)] * len(items)
        return np.array([self._number(cell) for cell in cells], dtype=np.int16)

    def _cells(self, dataset: Dataset, pairs: Judgements) -> tuple[list[Any], NDArray[np.int64]]:
        """Return the different cells that the rule reads, and where each pair's stands among them."""
        keys, read = self._source(dataset, pairs)
        known, places = np.unique(keys, return_inverse=True)
        return [read(int(key)).get(self.column) for key in known], places

    def _source(self, dataset: Dataset, pairs: Judgements) -> tuple[NDArray[Any], Callable[[int], Record]]:
        if self.table == "item":
            return pairs.items, dataset.item_record
        if self.table == "user":
            return pairs.users, dataset.user_record
        if self.table == "time":
            times = np.full(len(pairs), NO_TIME) if pairs.times is None else pairs.times
            # No scene changes within a part of a day: few different keys instead of a moment a pair.
            return np.where(times == NO_TIME, NO_TIME, times // _DAYPART * _DAYPART), _moment
        if pairs.rows is None:
            raise DataError(f"got impressions, which have no columns of their own, for scenes by {self.config.by}")
        return pairs.rows, dataset.event_record

    def _number(self, cell: Any) -> int:
        named = (self._numbers[label] for label in _labels(cell) if label in self._numbers)
        return next(named, self._numbers[OTHER])


def _moment(seconds: int) -> dict[str, str]:
    """Return all that a moment is told by.

    >>> _moment(1_700_000_000)
    {'season': 'autumn', 'month': 'november', 'weekday': 'tuesday', 'daypart': 'evening'}
    """
    if seconds == NO_TIME:
        return {}
    moment = datetime.fromtimestamp(seconds, UTC)
    month, day, hour = moment.month, moment.weekday(), moment.hour
    places = {"season": month % 12 // 3, "month": month - 1, "weekday": day, "daypart": hour // 6}
    return {name: TIMES[name][place] for name, place in places.items()}


def _told_moment(time: Any) -> dict[str, str]:
    """Return all that a request's moment is told by, as far as the request says it."""
    try:
        return {} if time is None else _moment(int(time))
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise DataError(f"time: got {time!r}, expected Unix seconds ({error})") from error


def _labels(cell: Any) -> list[str]:
    """Return the labels in a cell: ``a|b`` and a list hold several, ``a > b`` a path of them.

    >>> _labels("Shop > Books|Shop > Toys"), _labels(None)
    (['Shop', 'Books', 'Shop', 'Toys'], [])
    """
    if cell is None:
        return []
    parts = [str(part) for part in cell] if isinstance(cell, list) else str(cell).split("|")
    return [label.strip() for part in parts for label in part.split(">") if label.strip()]
