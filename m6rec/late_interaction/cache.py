"""Lower states of segments, kept by their words: in memory, and on disk behind it. This module knows no model."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import CacheError
from m6rec.late_interaction.disk import DiskTier

States = NDArray[np.floating]


@dataclass(frozen=True)
class CacheConfig:
    """Settings of a segment cache; they change speed and memory, and half precision the third decimal of a score."""

    memory_bytes: int = 256 << 20
    """Most bytes of states in memory, the pinned ones among them."""
    disk: str | None = None
    """File of the tier behind the memory, which other processes may share; null = there is none."""
    disk_bytes: int = 4 << 30
    """Most bytes on disk; beyond it the states that were written first go."""
    dtype: Literal["float32", "float16"] = "float32"
    """How states are kept: half precision takes half the bytes (changes scores by some 1e-3)."""


@dataclass
class CacheStats:
    """What a cache has been asked, counted in segments.

    Args:
        memory_hits: found in memory.
        disk_hits: found on disk.
        misses: not found.
        evictions: pushed out of memory by others.
    """

    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of what was asked for that was there; 0 before anything was asked."""
        hits = self.memory_hits + self.disk_hits
        return hits / max(1, hits + self.misses)


@runtime_checkable
class SegmentStore(Protocol):
    """Where lower states are kept: a :class:`SegmentCache`, or several tiers of which it is one.

    Attributes:
        version: of the weights, the tuner and the layer that the states are of.
    """

    version: str

    def get_many(self, keys: Sequence[bytes]) -> list[States | None]:
        """Return the states of each key, or ``None``."""
        ...

    def put_many(self, entries: Mapping[bytes, States]) -> dict[bytes, States]:
        """Keep states under their keys; return them as they will be found."""
        ...


def segment_key(ids: NDArray[np.integer], is_target: bool) -> bytes:
    """Return the key of a segment: its words, and the region that they are read in.

    >>> segment_key(np.array([7, 8]), False) == segment_key(np.array([7, 8], dtype=np.int32), False)
    True
    """
    words = np.ascontiguousarray(ids, dtype=np.int32).tobytes()
    return hashlib.blake2b(words, digest_size=16, person=b"target" if is_target else b"source").digest()


@dataclass
class _Memory:
    """Least recently used goes first, pinned never. Not safe by itself."""

    limit_bytes: int
    used_bytes: int = 0
    recent: OrderedDict[bytes, States] = field(default_factory=OrderedDict)
    hot: dict[bytes, States] = field(default_factory=dict)

    def get(self, key: bytes) -> States | None:
        if key in self.hot:
            return self.hot[key]
        if key in self.recent:
            self.recent.move_to_end(key)
            return self.recent[key]
        return None

    def put(self, key: bytes, states: States, pinned: bool) -> int:
        """Keep states; return how many others had to go."""
        former = self.hot.pop(key, None)
        former = self.recent.pop(key, former)
        self.used_bytes -= 0 if former is None else former.nbytes
        evicted = 0
        while self.recent and self.used_bytes + states.nbytes > self.limit_bytes:
            _, gone = self.recent.popitem(last=False)
            self.used_bytes -= gone.nbytes
            evicted += 1
        if self.used_bytes + states.nbytes <= self.limit_bytes:
            (self.hot if pinned else self.recent)[key] = states
            self.used_bytes += states.nbytes
        elif pinned:
            raise CacheError(
                f"got a hot set that does not fit into {self.limit_bytes:,} bytes, expected one that does; pin fewer "
                "segments, or set memory_bytes higher"
            )
        return evicted


class SegmentCache:
    """Lower states by segment: bounded in bytes, in memory and (where asked for) on disk, safe to share by threads.

    A cache is of one version: of the weights, the tuner and the layer that the states are of. States of other versions
    in the same file are never found; ``invalidate`` drops them. Values are read only.

    Args:
        version: as :func:`m6rec.late_interaction.scorer.version_of` names it.
        config: bounds, file and precision.

    Raises:
        CacheError: the file on disk is damaged.
    """

    def __init__(self, version: str, config: CacheConfig | None = None) -> None:
        self.version, self.config, self.stats = version, config or CacheConfig(), CacheStats()
        self._memory, self._pinned = _Memory(self.config.memory_bytes), set[bytes]()
        self._lock = threading.Lock()
        path = self.config.disk
        self._disk = None if path is None else DiskTier(Path(path), version, self.config.disk_bytes)

    def __len__(self) -> int:
        """Return how many segments are in memory."""
        return len(self._memory.recent) + len(self._memory.hot)

    @property
    def used_bytes(self) -> int:
        """Bytes of states in memory."""
        return self._memory.used_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the file that hold something; 0 where there is none."""
        return 0 if self._disk is None else self._disk.used_bytes

    def get_many(self, keys: Sequence[bytes]) -> list[States | None]:
        """Return the states of each key, ``[vectors, hidden]``, or ``None``; what was on disk alone comes to memory.

        Raises:
            CacheError: the file on disk is damaged.
        """
        with self._lock:
            found = [self._memory.get(key) for key in keys]
        missing = [key for key, states in zip(keys, found, strict=True) if states is None]
        on_disk = self._disk.get_many(missing) if self._disk is not None and missing else {}
        with self._lock:
            self.stats.memory_hits += len(keys) - len(missing)
            self.stats.disk_hits += sum(key in on_disk for key in missing)
            self.stats.misses += sum(key not in on_disk for key in missing)
            self._remember(on_disk)
        return [on_disk.get(key) if states is None else states for key, states in zip(keys, found, strict=True)]

    def put_many(self, entries: Mapping[bytes, States], replace: bool = False) -> dict[bytes, States]:
        """Keep states under their keys, in memory and on disk; return them as they will be found, rounded or not.

        Args:
            entries: states by key.
            replace: whether they may differ from what is on disk under the same keys (a segment's never do).

        Raises:
            CacheError: a number that half precision cannot hold, or a hot set that does not fit.
        """
        kept = {key: self._stored(states) for key, states in entries.items()}
        with self._lock:
            self._remember(kept)
        if self._disk is not None and kept:
            self._disk.put_many(kept, replace)
        return kept

    def pin(self, keys: Collection[bytes]) -> None:
        """Keep these segments in memory whatever else comes, those to come included; the former hot set is let go.

        Raises:
            CacheError: they do not fit.
        """
        with self._lock:
            self._pinned = set(keys)
            held = {**self._memory.hot, **self._memory.recent}
            for key in self._memory.hot.keys() | (self._pinned & held.keys()):
                self._memory.put(key, held[key], key in self._pinned)

    def invalidate(self) -> None:
        """Drop the states of all other versions from the disk, as after a new training."""
        if self._disk is not None:
            self._disk.drop_others()

    def close(self) -> None:
        """Close the file of this thread; the others' close with them."""
        if self._disk is not None:
            self._disk.close()

    def _remember(self, entries: Mapping[bytes, States]) -> None:
        for key, states in entries.items():
            self.stats.evictions += self._memory.put(key, states, key in self._pinned)

    def _stored(self, states: States) -> States:
        with np.errstate(over="ignore"):
            kept = np.array(states, dtype=self.config.dtype)
        if not np.isfinite(kept).all():
            raise CacheError(
                f"got states up to {float(np.abs(states).max()):.3g}, expected numbers that {self.config.dtype} can "
                "hold; keep them with dtype=float32"
            )
        kept.flags.writeable = False
        return kept
