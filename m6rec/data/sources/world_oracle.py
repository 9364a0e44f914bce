"""What only the sample world knows: the true probabilities behind its log, the ceiling of every model.

The oracle replays the simulation and reads the state before a choice. It knows a user's tastes, interests and visit,
and when the choice is made, but not the dice. Knows no dataset folder: users and items go by the world's own keys.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from m6rec.data.sources.world_behaviour import CLICKED_SHARE, STRIP_LENGTH, simulate
from m6rec.data.sources.world_choice import Choice, State
from m6rec.data.sources.world_frame import shares
from m6rec.data.sources.world_population import BLOCK, Population, build_population
from m6rec.errors import DataError

Read = Callable[[Population, State, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], None]
"""Reads a state: people, state, users ``[M]``, steps ``[M]``, and which questions they answer ``[M]``."""


class Oracle:
    """The true probabilities of one sample world.

    Args:
        choice: the world's choice model.
        num_users: number of users.
        seed: the world's seed.
    """

    def __init__(self, choice: Choice, num_users: int, seed: int) -> None:
        self._choice, self._num_users, self._seed = choice, num_users, seed
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

        def read(
            people: Population,
            state: State,
            rows: NDArray[np.int64],
            steps: NDArray[np.int64],
            asked: NDArray[np.int64],
        ) -> None:
            searched = people.searched[rows, steps] >= 0
            known = searched & (people.search_times[rows, steps] <= after[asked])
            answers[asked] = self._choice.distribution(people, state, rows, steps, known, np.zeros(len(rows), bool))

        self._replay(users, after, read)
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

        def read(
            people: Population,
            state: State,
            rows: NDArray[np.int64],
            steps: NDArray[np.int64],
            asked: NDArray[np.int64],
        ) -> None:
            once, back = np.unique(rows, return_inverse=True)
            step = np.full(len(once), steps[0])
            searched = people.searched[once, step] >= 0
            choice = self._choice.distribution(people, state, once, step, searched, ~searched)
            filler = shares(self._choice.filler(people, state, once, people.times[once, step]))
            chosen, filled = choice[back, shown[asked]], filler[back, shown[asked]]
            total = prior * chosen + (1 - prior) * filled
            answers[asked] = np.divide(prior * chosen, total, out=np.zeros(len(asked)), where=total > 0)

        # A strip is shown no later than its choice, so the first choice at or after it is the one.
        self._replay(users, np.asarray(times) - 1, read)
        return answers

    def _replay(self, users: Sequence[str], after: NDArray[np.int64], read: Read) -> None:
        """Simulate the blocks that ``users`` live in and hand over the state before each asked choice."""
        numbers = np.array([self._number(key) for key in users], dtype=np.int64)
        for first in np.unique(numbers // BLOCK) * BLOCK:
            asked = np.flatnonzero(numbers // BLOCK * BLOCK == first)
            people = build_population(int(first), min(BLOCK, self._num_users - int(first)), self._seed)
            rows = numbers[asked] - first
            steps = (people.times[rows] <= after[asked, None]).sum(axis=1)
            beyond = np.flatnonzero(steps >= people.lengths[rows])
            if len(beyond):
                user, when = users[asked[beyond[0]]], int(after[asked[beyond[0]]])
                raise DataError(f"user {user!r} has no event after {when}; ask for an event that was held out")
            simulate(self._choice, people, self._seed, _Watch(rows, steps, asked, read))

    def _number(self, key: str) -> int:
        number = int(key[1:]) if key[:1] == "u" and key[1:].isdigit() else -1
        if not 0 <= number < self._num_users:
            raise DataError(f"got user {key!r}, expected one of this world's {self._num_users}, e.g. 'u0000000'")
        return number


class _Watch:
    """Waits for the asked steps of one block."""

    def __init__(self, rows: NDArray[np.int64], steps: NDArray[np.int64], asked: NDArray[np.int64], read: Read) -> None:
        self._rows, self._steps, self._asked, self._read = rows, steps, asked, read

    def __call__(self, people: Population, state: State, rows: NDArray[np.int64], step: int) -> None:
        due = np.flatnonzero(self._steps == step)
        if len(due):
            self._read(people, state, self._rows[due], self._steps[due], self._asked[due])
