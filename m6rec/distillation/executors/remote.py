"""A teacher served elsewhere over HTTP, as scripts/serve_teacher.py serves it. Knows no student, window or order."""

import contextlib
import http.client
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from m6rec.distillation.executors.base import OpenTeacher
from m6rec.distillation.service import CARD_PATH, LABEL_PATH
from m6rec.distillation.teacher import TeacherCard
from m6rec.errors import ConfigError, DistillationError


@dataclass(frozen=True)
class RemoteConfig:
    """An address."""

    url: str
    """Where the teacher is served (`remote:http://HOST:PORT`)."""
    timeout_seconds: float = 600.0
    """Seconds without a byte after which a connection counts as dead: a machine that loses its power says nothing.
    Changes speed only."""


class RemoteExecutor:
    """A connection to a teacher that somebody else has started, kept open from batch to batch.

    Args:
        open_teacher: not needed: the teacher is there already.
        config: where.

    Raises:
        ConfigError: no address.
    """

    Config = RemoteConfig

    def __init__(self, open_teacher: OpenTeacher | None, config: RemoteConfig) -> None:
        self.config = config
        place = urlsplit(config.url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ConfigError(f"got the teacher remote:{config.url}, expected remote:http://HOST:PORT")
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(place.hostname, place.port, timeout=config.timeout_seconds)

    def open(self) -> TeacherCard:
        """Connect and return the teacher's card; hang up on whoever is none."""
        try:
            return TeacherCard.load(self._ask("GET", CARD_PATH))
        except DistillationError:
            self.close()
            raise

    def label(self, request: bytes) -> bytes:
        """Return the packed answer to a packed batch."""
        return self._ask("POST", LABEL_PATH, request)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            if self._connection.sock is not None:  # wakes a thread that waits for an answer
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        try:
            self._connection.request(method, path, body)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ConnectionError(f"{self.config.url}: {error!r}") from error
        if response.status != http.client.OK:
            raise DistillationError(f"{self.config.url}{path} says {response.status}: {content[:200]!r}")
        return content
