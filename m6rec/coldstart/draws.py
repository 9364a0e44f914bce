"""Training examples of a cold-user task: a stretch of a user's events as support, later ones as queries.

Knows no predictor and no loss.
"""

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from m6rec.coldstart.episodes import Episodes, Protocol

Draw = tuple[int, int]


class Draws(Sequence[Draw]):
    """Every user ``number`` times: (row of the user, number of the draw).

    Args:
        episodes: users that are learnt from.
        protocol: support sizes.
        number: draws of each user.
        queries: most queries of a draw.
        seed: each draw depends on it, the user and the draw's number alone.
    """

    def __init__(self, episodes: Episodes, protocol: Protocol, number: int, queries: int, seed: int) -> None:
        self.episodes, self.protocol, self.queries, self.seed = episodes, protocol, queries, seed
        usable = np.flatnonzero(episodes.lengths >= 2).tolist()
        self._draws = [(row, draw) for draw in range(number) for row in usable]

    def __len__(self) -> int:
        return len(self._draws)

    @overload
    def __getitem__(self, index: int) -> Draw: ...
    @overload
    def __getitem__(self, index: slice) -> list[Draw]: ...
    def __getitem__(self, index: int | slice) -> Draw | list[Draw]:
        return self._draws[index]

    def cut(self, draw: Draw) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the support's and the queries' events; all queries come later than the support.

        Half of the draws begin at the user's first event, as they do when she is new; the others anywhere, for there
        is more to learn from.
        """
        row, _ = draw
        rng = np.random.default_rng([self.seed, *draw])
        first, length = int(self.episodes.offsets[row]), int(self.episodes.lengths[row])
        size = int(rng.choice([size for size in self.protocol.sizes() if size < length]))
        start = first if rng.random() < 0.5 else first + int(rng.integers(length - size))
        end = min(first + length, start + size + self.protocol.max_queries)
        later = np.arange(start + size, end)
        return np.arange(start, start + size), np.sort(rng.permutation(later)[: self.queries])
