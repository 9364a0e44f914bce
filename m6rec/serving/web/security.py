"""Who may ask, and how often. Keys lie in a file as hashes; this module knows no route and no request."""

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m6rec.errors import ConfigError

PREFIX, PER_MINUTE = "m6_", 600


@dataclass(frozen=True)
class ApiKey:
    """A line of a key file.

    Args:
        name: whose, for logs and metrics.
        digest: SHA-256 of the key, in hex; a key has 192 random bits, so that there is nothing to guess.
        per_minute: requests that it may make.
    """

    name: str
    digest: str
    per_minute: int


def new_key(path: Path, name: str, per_minute: int = PER_MINUTE) -> str:
    """Add a key to a file and return it; it cannot be read from there again.

    Raises:
        ConfigError: the name has spaces, or is taken.
    """
    if not name or len(name.split()) != 1:
        raise ConfigError(f"got the key name {name!r}, expected one word")
    if path.exists() and any(known.name == name for known in read_keys(path)):
        raise ConfigError(f"{path} has a key named {name!r}; give another name, or take that line out")
    key = PREFIX + secrets.token_urlsafe(24)
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{name} {_digest(key)} {per_minute}\n")
    path.chmod(0o600)
    return key


def read_keys(path: Path) -> list[ApiKey]:
    """Return the keys of a file: a name, a hash and requests a minute on each line; ``#`` begins a comment.

    Raises:
        ConfigError: it cannot be read, has a wrong line, or none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); make one with: m6rec api-key {path} NAME") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        if not (words := line.partition("#")[0].split()):
            continue
        if len(words) != 3 or len(words[1]) != 64 or not words[2].isdecimal() or int(words[2]) < 1:
            raise ConfigError(f"{path}, line {number}: expected `NAME SHA256 REQUESTS_A_MINUTE`")
        keys.append(ApiKey(words[0], words[1].lower(), int(words[2])))
    if not keys:
        raise ConfigError(f"{path} holds no key; make one with: m6rec api-key {path} NAME")
    return keys


class Gate:
    """Lets in who has a key, as often as it allows.

    Args:
        keys: as :func:`read_keys` gives them.
        clock: seconds.
    """

    def __init__(self, keys: list[ApiKey], clock: Callable[[], float] = time.monotonic) -> None:
        self.keys, self._clock, self._lock = tuple(keys), clock, threading.Lock()
        self._buckets = {key.name: (float(key.per_minute), clock()) for key in keys}

    def who(self, given: str) -> ApiKey | None:
        """Return whose key it is, in the same time whether and wherever it is in the list."""
        digest, found = _digest(given), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def wait_s(self, key: ApiKey) -> float:
        """Take one request from a key's account; return 0, or the seconds until there is one again."""
        a_second = key.per_minute / 60
        with self._lock:
            now = self._clock()
            left, then = self._buckets[key.name]
            left = min(float(key.per_minute), left + (now - then) * a_second)
            self._buckets[key.name] = (left - 1 if left >= 1 else left, now)
        return 0.0 if left >= 1 else (1 - left) / a_second


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
