"""Tiers of storage behind one interface: what is asked most in memory, the rest on disk and in other processes.

Every tier is of one version of the models: a swap replaces models and tiers together. Knows no model and no text.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from m6rec.errors import CacheError
from m6rec.late_interaction.cache import CacheConfig, SegmentCache, States

logger = logging.getLogger(__name__)


class Tier(Protocol):
    """Keeps values under keys; may forget them."""

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, States]:
        """Return those that are there."""
        ...

    def put_many(self, entries: Mapping[bytes, States]) -> None:
        """Keep values."""
        ...

    def report(self) -> dict[str, Any]:
        """Return ``hits``, ``misses`` and ``used_bytes``."""
        ...


@dataclass
class Kept:
    """An answer in the query cache.

    Args:
        answer: what the request got.
        stamp: what it was made of.
        made: seconds.
        size_bytes: of its key and itself.
    """

    answer: dict[str, Any]
    stamp: Any
    made: float
    size_bytes: int


class QueryCache:
    """L0: whole answers by what was asked, for a short time; what was asked least lately goes first.

    An answer whose time is over stays until its room is needed: under load an old answer is better than none.

    Args:
        limit_bytes: most bytes of answers.
        ttl_s: how long an answer is as good as a new one.
        clock: seconds.
    """

    def __init__(self, limit_bytes: int, ttl_s: float, clock: Callable[[], float]) -> None:
        self.limit_bytes, self.ttl_s, self._clock = limit_bytes, ttl_s, clock
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._lock = threading.Lock()
        self.used_bytes = self.hits = self.misses = self.stale_hits = 0

    def get(self, keys: Iterable[bytes], stamp: Any) -> dict[str, Any] | None:
        """Return an answer that is as good as new, under the first of some keys that has one.

        Args:
            keys: of the request, the best first.
            stamp: what an answer would be made of now.
        """
        for key in keys:
            with self._lock:
                kept = self._kept.get(key)
                if kept is not None and kept.stamp == stamp and self._clock() - kept.made <= self.ttl_s:
                    self._kept.move_to_end(key)
                    self.hits += 1
                    return kept.answer
        self.misses += 1
        return None

    def get_stale(self, keys: Iterable[bytes]) -> dict[str, Any] | None:
        """Return an answer of any age and stamp, under the first of some keys that has one."""
        for key in keys:
            with self._lock:
                if (kept := self._kept.get(key)) is not None:
                    self.stale_hits += 1
                    return kept.answer
        return None

    def put(self, key: bytes, answer: dict[str, Any], stamp: Any, size_bytes: int) -> None:
        """Keep an answer, which nobody changes from here on.

        Args:
            key: of the request.
            answer: to it.
            stamp: what it was made of.
            size_bytes: about how large it is.
        """
        kept = Kept(answer, stamp, self._clock(), size_bytes + len(key))
        with self._lock:
            former = self._kept.pop(key, None)
            self.used_bytes -= 0 if former is None else former.size_bytes
            if kept.size_bytes > self.limit_bytes:
                return
            self._kept[key] = kept
            self.used_bytes += kept.size_bytes
            while self.used_bytes > self.limit_bytes:
                _, gone = self._kept.popitem(last=False)
                self.used_bytes -= gone.size_bytes

    def report(self) -> dict[str, Any]:
        """Return what it was asked and how full it is."""
        return {
            "hits": self.hits,
            "misses": self.misses,
            "stale_hits": self.stale_hits,
            "used_bytes": self.used_bytes,
        }


class HotSet:
    """L1: what a log asks for most, loaded all at once and never changed; readers take no lock.

    Args:
        limit_bytes: most bytes of values.

    Source: CubeCache of PaddleServing (``core/predictor/framework/cache.h``), the cube cache of JIZHI
        (arXiv 2106.01674): hot keys loaded at once, swapped as a whole.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._held: dict[bytes, States] = {}
        self.used_bytes = self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._held)

    def load(self, entries: Iterable[tuple[bytes, States]]) -> None:
        """Put another set in place of the former one, by one assignment.

        Args:
            entries: what is asked most first; taken as far as they fit.
        """
        held: dict[bytes, States] = {}
        used = 0
        for key, states in entries:
            if used + states.nbytes > self.limit_bytes:
                break
            held[key] = states
            used += states.nbytes
        self._held, self.used_bytes = held, used

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, States]:
        """Return those that are in the set."""
        held = self._held
        found = {key: held[key] for key in keys if key in held}
        self.hits += len(found)
        self.misses += len(keys) - len(found)
        return found

    def put_many(self, entries: Mapping[bytes, States]) -> None:
        """Do nothing: the set changes as a whole."""

    def report(self) -> dict[str, Any]:
        """Return what it was asked and how full it is."""
        return {"hits": self.hits, "misses": self.misses, "used_bytes": self.used_bytes}


class SegmentTiers:
    """Lower states of segments behind all tiers: the hot set, recent ones in memory, the disk, and others' store.

    A tier that fails is left out from then on and told in the log: what it held is computed again, and no request fails
    for it. What a lower tier has found comes up to the memory.

    Args:
        version: of the states (:func:`m6rec.late_interaction.scorer.version_of`).
        config: of memory and disk.
        hot: L1; ``None`` = recent ones alone.
        far: L3; ``None`` = there is none.

    Attributes:
        failed: tiers that are left out by now.
        asked: how many segments have been asked for.
        held: how many of them were there.
    """

    def __init__(self, version: str, config: CacheConfig, hot: HotSet | None = None, far: Tier | None = None) -> None:
        self.version, self.hot, self.far = version, hot, far
        self.failed: list[str] = []
        self.asked = self.held = 0
        try:
            self._near = SegmentCache(version, config)
        except CacheError as error:
            self._near = self._without_disk(config, error)

    def get_many(self, keys: Sequence[bytes]) -> list[States | None]:
        """Return the states of each key, from the first tier that has them, or ``None``."""
        found = {} if self.hot is None else self.hot.get_many(keys)
        missing = [key for key in keys if key not in found]
        if missing:
            near = zip(missing, self._from_near(missing), strict=True)
            found |= {key: states for key, states in near if states is not None}
        missing = [key for key in missing if key not in found]
        if missing and self.far is not None:
            found |= self._from_far(missing)
        self.asked += len(keys)
        self.held += len(found)
        return [found.get(key) for key in keys]

    def put_many(self, entries: Mapping[bytes, States]) -> dict[bytes, States]:
        """Keep states in every tier that takes them; return them as they will be found."""
        try:
            kept = self._near.put_many(entries)
        except CacheError as error:
            if self._near.config.disk is None:
                raise
            self._near = self._without_disk(self._near.config, error)
            kept = self._near.put_many(entries)
        if self.far is not None and kept:
            self._tell_far(kept)
        return kept

    def report(self) -> dict[str, dict[str, Any]]:
        """Return tier -> what it was asked and how full it is."""
        stats, tiers = self._near.stats, {}
        if self.hot is not None:
            tiers["hot"] = self.hot.report()
        below = stats.disk_hits + stats.misses
        tiers["memory"] = {"hits": stats.memory_hits, "misses": below, "used_bytes": self._near.used_bytes}
        if self._near.config.disk is not None:
            tiers["disk"] = {"hits": stats.disk_hits, "misses": stats.misses, "used_bytes": self._near.disk_bytes}
        if self.far is not None:
            tiers["far"] = self.far.report()
        return tiers

    def close(self) -> None:
        """Close this thread's file."""
        self._near.close()

    def _from_near(self, keys: Sequence[bytes]) -> list[States | None]:
        try:
            return self._near.get_many(keys)
        except CacheError as error:
            self._near = self._without_disk(self._near.config, error)
            return self._near.get_many(keys)

    def _from_far(self, keys: Sequence[bytes]) -> dict[bytes, States]:
        assert self.far is not None
        try:
            found = self.far.get_many(keys)
        except CacheError as error:
            self._lose_far(error)
            return {}
        return self._near.put_many(found) if found else {}

    def _tell_far(self, entries: Mapping[bytes, States]) -> None:
        assert self.far is not None
        try:
            self.far.put_many(entries)
        except CacheError as error:
            self._lose_far(error)

    def _lose_far(self, error: CacheError) -> None:
        logger.error("going on without the far tier: %s", error)
        self.failed.append("far")
        self.far = None

    def _without_disk(self, config: CacheConfig, error: CacheError) -> SegmentCache:
        logger.error("going on without the disk tier: %s", error)
        self.failed.append("disk")
        return SegmentCache(self.version, replace(config, disk=None))
