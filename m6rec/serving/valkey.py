"""L3: segments in a Valkey (or Redis) server that many processes share. Knows no model."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m6rec.errors import CacheError, needs
from m6rec.late_interaction.cache import States

# A server that does not answer by then is of no use: the states are computed as fast.
_TIMEOUT_S = 0.5


class ValkeyTier:
    """States in a server of their own; how much it keeps, and for how long, is the server's setting.

    The version is in every key, and a checksum in every value: one that is damaged is not there.

    Args:
        client: of the server.
        version: what the states are of.
    """

    def __init__(self, client: Any, version: str) -> None:
        self._client, self._prefix = client, f"m6rec:{version}:".encode()
        self.hits = self.misses = 0

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, States]:
        """Return those that are there.

        Raises:
            CacheError: the server does not answer.
        """
        with _told():
            values = self._client.mget([self._prefix + key for key in keys])
        read = {key: unpacked(value) for key, value in zip(keys, values, strict=True) if value is not None}
        found = {key: states for key, states in read.items() if states is not None}
        self.hits += len(found)
        self.misses += len(keys) - len(found)
        return found

    def put_many(self, entries: Mapping[bytes, States]) -> None:
        """Keep states.

        Raises:
            CacheError: the server does not answer.
        """
        with _told():
            self._client.mset({self._prefix + key: packed(states) for key, states in entries.items()})

    def report(self) -> dict[str, Any]:
        """Return what it was asked; how full it is, is the server's to say."""
        return {"hits": self.hits, "misses": self.misses, "used_bytes": 0}


class _told:  # noqa: N801 - used as a statement
    """Turns what the client says into one clear error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import valkey

        if isinstance(error, valkey.ValkeyError):
            raise CacheError(f"the Valkey server cannot be used ({error}); start it, or go on without it") from error


def open_far(address: str, version: str) -> ValkeyTier:
    """Return the tier of a server.

    Args:
        address: such as ``redis://host:6379``.
        version: what the states are of.

    Raises:
        MissingExtraError: its client is not installed.
        CacheError: it does not answer.
    """
    with needs("valkey"):
        import valkey
    client = valkey.Valkey.from_url(address, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
    with _told():
        client.ping()
    return ValkeyTier(client, version)


def packed(states: States) -> bytes:
    """Return states as bytes: kind, number of vectors, checksum, values.

    >>> unpacked(packed(np.ones((2, 3), np.float16))).shape
    (2, 3)
    """
    value = np.ascontiguousarray(states).tobytes()
    head = f"{states.dtype} {len(states)} {zlib.crc32(value)}".encode()
    return bytes([len(head)]) + head + value


def unpacked(value: bytes) -> States | None:
    """Return states from their bytes; ``None`` = these are none, or damaged."""
    try:
        size = value[0]
        kind, vectors, checksum = value[1 : 1 + size].decode("ascii").split()
        rest = value[1 + size :]
        if zlib.crc32(rest) != int(checksum):
            return None
        states: States = np.frombuffer(rest, dtype=kind).reshape(int(vectors), -1)
    except (IndexError, ValueError, TypeError):
        return None
    return states
