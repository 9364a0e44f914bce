"""String keys as numbers: codes while a log streams by, then shuffled ids. This module knows no table.

An id is the rank of a keyed digest of the key. So ids are a seeded shuffle, they say nothing of popularity, file or
time, and they depend on the set of keys alone: no event can move an id, held out or not.
"""

import hashlib
from array import array

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Keys:
    """The keys of users or of items: a code for each in order of first sight, and the ids in the end.

    Args:
        kind: ``"user"`` or ``"item"``; shuffles the two apart.
        seed: seed of the shuffle.

    >>> keys = Keys("item", seed=0)
    >>> keys.encode(pa.array(["b", "a", "b", None])).tolist()
    [0, 1, 0, -1]
    """

    def __init__(self, kind: str, seed: int) -> None:
        self.kind, self.seed = kind, seed
        self._codes: dict[str, int] = {}
        self._digests = array("Q")

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def digests(self) -> NDArray[np.uint64]:
        """``[num_keys]`` keyed digests; a key's place in the shuffle."""
        return np.array(self._digests, dtype=np.uint64)

    def places(self, codes: NDArray[np.int32]) -> NDArray[np.uint64]:
        """Return the digests of some codes."""
        # The view must be gone before the next key comes: an array cannot grow while it is looked at.
        return np.frombuffer(self._digests, dtype=np.uint64)[codes] if len(codes) else np.zeros(0, np.uint64)

    def encode(self, column: pa.Array) -> NDArray[np.int32]:
        """Return the code of each key, ``-1`` for null; a new key gets the next code."""
        encoded = column.dictionary_encode()
        codes = [self._code(key) for key in encoded.dictionary.to_pylist()]
        # The appended -1 is where index -1, a null, looks.
        table = np.array([*codes, -1], dtype=np.int32)
        return table[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]

    def find(self, keys: list[str]) -> NDArray[np.int32]:
        """Return the code of each key, ``-1`` where it was never seen."""
        return np.array([self._codes.get(key, -1) for key in keys], dtype=np.int32)

    def names(self) -> pa.Array:
        """Return ``[num_keys]`` the keys in the order of their codes."""
        return pa.array(list(self._codes), pa.string())

    def ids(self, keep: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Return ``[num_keys]`` the id of each code: ``0, 1, ...`` in shuffled order, ``-1`` where not ``keep``."""
        kept = np.flatnonzero(keep)
        ids = np.full(len(self), -1, dtype=np.int32)
        ids[kept[np.argsort(self.digests[kept], kind="stable")]] = np.arange(len(kept), dtype=np.int32)
        return ids

    def _code(self, key: str) -> int:
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = len(self._codes)
            self._digests.append(digest(key, self.kind, self.seed))
        return code


def digest(key: str, kind: str, seed: int) -> int:
    """Return a 64-bit number that is random in ``key``, and another one for another ``kind`` or ``seed``."""
    salt = seed.to_bytes(16, "little", signed=True)
    return int.from_bytes(
        hashlib.blake2b(key.encode(), digest_size=8, key=salt, person=kind.encode()).digest(), "little"
    )


def mix(*numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return one random-looking 64-bit number for each tuple of numbers.

    **Source:** the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    state = np.zeros_like(numbers[0])
    for number in numbers:
        state = (state ^ number) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state
