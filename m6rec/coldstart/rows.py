"""Users' adaptive parts as compact rows behind the tiers of the segment cache: in memory, and on disk behind it.

A row is a few numbers and the count of events behind them. Bounded in bytes; a process that is killed while writing
leaves every row as it was before or after, never torn. Knows no model.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.late_interaction.cache import CacheConfig, SegmentCache


@dataclass(frozen=True)
class UserRow:
    """What is kept of a user.

    Args:
        numbers: ``[numbers]`` float32, the adaptive part.
        events: how many events made it.
    """

    numbers: NDArray[np.float32]
    events: int


class UserRows:
    """Rows by the log's own user ids; those of another version of the fixed part are never found.

    Args:
        version: what the numbers mean: a hash of the fixed part.
        size: numbers of a user.
        config: bounds and precision (half takes half the bytes, and changes the third decimal).

    Raises:
        CacheError: the file on disk is damaged.
    """

    def __init__(self, version: str, size: int, config: CacheConfig | None = None) -> None:
        self.size, self._cache = size, SegmentCache(version, config)

    @property
    def bytes_per_user(self) -> int:
        """Bytes of one user's row: the numbers, and the count of events."""
        return (self.size + 1) * np.dtype(self._cache.config.dtype).itemsize

    def get(self, users: Sequence[str]) -> list[UserRow | None]:
        """Return each user's row, ``None`` for one who has none.

        Raises:
            CacheError: the file on disk is damaged.
        """
        found = self._cache.get_many([_key(user) for user in users])
        return [None if row is None else UserRow(row[0, :-1].astype(np.float32), _count(row[0, -1])) for row in found]

    def put(self, rows: Mapping[str, UserRow]) -> None:
        """Write rows over what was there, all of them or none."""
        entries = {}
        for user, row in rows.items():
            if row.numbers.shape != (self.size,):
                raise ValueError(f"got a row of {row.numbers.shape}, expected ({self.size},)")
            # As a root: half precision counts exactly to 2048 only, and only the step's size depends on it.
            entries[_key(user)] = np.append(row.numbers, np.sqrt(row.events)).astype(np.float32)[None]
        self._cache.put_many(entries, replace=True)

    def close(self) -> None:
        """Close the file of this thread."""
        self._cache.close()


def _key(user: str) -> bytes:
    return hashlib.blake2b(user.encode(), digest_size=16, person=b"user").digest()


def _count(root: float) -> int:
    return round(float(root) ** 2)
