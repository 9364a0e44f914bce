"""What only the sample world knows: the true probabilities behind its log, the ceiling of every model.

The oracle knows a user's tastes, interests and visit, and when a choice is made, but not the dice. Knows no dataset
folder: users and items go by the world's own keys.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.data.sources.world_behaviour import CLICKED_SHARE, STRIP_LENGTH, Log, recall
from m6rec.data.sources.world_choice import Choice, State
from m6rec.data.sources.world_frame import shares
from m6rec.data.sources.world_population import BLOCK, Population
from m6rec.errors import DataError

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class _Moment:
    """A stretch of questions: row ``m`` of people and state is question ``asked[m]``, before choice ``steps[m]``."""

    asked: NDArray[np.int64]
    people: Population
    state: State
    steps: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.arange(len(self.asked))

    @property
    def times(self) -> NDArray[np.int64]:
        return self.people.times[self.rows, self.steps]


class Oracle:
    """The true probabilities of one sample world.

    Args:
        choice: the world's choice model.
        num_users: number of users.
        log: gives the log of the block that begins with a user's number. In a world of many blocks, ask for users in
            the order of their keys.
    """

    def __init__(self, choice: Choice, num_users: int, log: Callable[[int], Log]) -> None:
        self._choice, self._num_users, self._log = choice, num_users, log
        self.item_keys: list[str] = choice.items.keys.tolist()
        self._item_rows = {key: row for row, key in enumerate(self.item_keys)}

    def next_item_probabilities(self, users: Sequence[str], after: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return ``[Q, num_items]`` the true distribution of each user's first item later than ``after``.

        Args:
            users: ``Q`` user keys.
            after: ``[Q]`` Unix seconds of the last event that is known, searches included; anything earlier than the
                user's first event asks for the first one.

        Raises:
            DataError: an unknown user, or one who does nothing later than ``after``.
        """
        after = np.asarray(after)
        answers = np.zeros((len(users), len(self.item_keys)), dtype=np.float32)
        for moment in self._moments(users, after):
            rows, steps = moment.rows, moment.steps
            searched = moment.people.searched[rows, steps] >= 0
            known = searched & (moment.people.search_times[rows, steps] <= after[moment.asked])
            answers[moment.asked] = self._distribution(moment, known, np.zeros(len(rows), dtype=bool))
        return answers

    def click_probabilities(
        self, users: Sequence[str], items: Sequence[str], times: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return ``[P]`` the true probability that an item shown to a user at a time was clicked.

        Bayes' rule over how strips are made (a clicked one holds one choice, everything else is filler); the other
        items of the strip are not looked at.

        Args:
            users: ``P`` user keys.
            items: ``P`` item keys.
            times: ``[P]`` when they were shown, as the impressions say.

        Raises:
            DataError: an unknown user or item, or a time after the user's last choice.
        """
        missing = next((key for key in items if key not in self._item_rows), None)
        if missing is not None:
            raise DataError(f"got item {missing!r}, expected one of this world, e.g. {self.item_keys[0]!r}")
        shown = np.array([self._item_rows[key] for key in items], dtype=np.int64)
        answers = np.zeros(len(users))
        prior = CLICKED_SHARE / STRIP_LENGTH
        # A strip is shown no later than its choice, so the first choice at or after it is the one.
        for moment in self._moments(users, np.asarray(times) - 1):
            searched = moment.people.searched[moment.rows, moment.steps] >= 0
            choice = self._distribution(moment, searched, ~searched)
            filler = shares(self._choice.filler(moment.people, moment.state, moment.rows, moment.times))
            chosen, filled = (table[moment.rows, shown[moment.asked]] for table in (choice, filler))
            total = prior * chosen + (1 - prior) * filled
            answers[moment.asked] = np.divide(prior * chosen, total, out=np.zeros(len(total)), where=total > 0)
        return answers

    def _distribution(
        self, moment: _Moment, search_known: NDArray[np.bool_], no_search: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        return self._choice.distribution(
            moment.people, moment.state, moment.rows, moment.steps, search_known, no_search
        )

    def _moments(self, users: Sequence[str], after: NDArray[np.int64]) -> Iterator[_Moment]:
        """Yield the states before each user's first choice later than ``after``, some questions at a time."""
        numbers = np.array([self._number(key) for key in users], dtype=np.int64)
        blocks = numbers // BLOCK * BLOCK
        for first in np.unique(blocks):
            of_block, log = np.flatnonzero(blocks == first), self._log(int(first))
            for start in range(0, len(of_block), _ROWS_AT_ONCE):
                asked = of_block[start : start + _ROWS_AT_ONCE]
                rows = numbers[asked] - first
                steps = (log.people.times[rows] <= after[asked, None]).sum(axis=1)
                beyond = np.flatnonzero(steps >= log.people.lengths[rows])
                if len(beyond):
                    user, when = users[asked[beyond[0]]], int(after[asked[beyond[0]]])
                    raise DataError(f"user {user!r} has no event after {when}; ask for an event that was held out")
                yield _Moment(asked, log.people.take(rows), recall(self._choice, log, rows, steps), steps)

    def _number(self, key: str) -> int:
        number = int(key[1:]) if key[:1] == "u" and key[1:].isdigit() else -1
        if not 0 <= number < self._num_users:
            raise DataError(f"got user {key!r}, expected one of this world's {self._num_users}, e.g. 'u0000000'")
        return number
