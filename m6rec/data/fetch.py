"""Download a public file once: resumed where it broke off, checked by its hash, kept in a cache, unpacked.

This module knows no dataset; sources hold the addresses.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from m6rec.errors import DataError

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 30.0
ATTEMPTS = 3
"""How often a broken transfer is resumed before giving up; what has arrived is kept either way."""
CACHE_VARIABLE = "M6REC_CACHE"


@dataclass(frozen=True)
class Remote:
    """A public file.

    Args:
        url: where it is.
        sha256: hash of its content, hexadecimal.
    """

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rstrip("/").rpartition("/")[2]


def cache_folder() -> Path:
    """Return where downloads are kept: ``$M6REC_CACHE``, else ``m6rec`` in the user's cache folder."""
    own = os.environ.get(CACHE_VARIABLE)
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "m6rec"


def fetch(remote: Remote, folder: Path | None = None) -> Path:
    """Return the local copy of a file; download what is missing of it.

    Args:
        remote: address and hash.
        folder: where copies are kept; the cache folder where not given.

    Raises:
        DataError: no connection, a refusal by the server, a transfer that keeps breaking off, or a wrong hash.
    """
    folder = cache_folder() if folder is None else folder
    # The hash is in the name, so that another edition of a file never passes for this one.
    done = folder / f"{remote.sha256[:12]}-{remote.name}"
    if done.is_file():
        return done
    folder.mkdir(parents=True, exist_ok=True)
    part = done.with_name(f"{done.name}.part")
    with _progress(remote.name) as bar:
        for attempt in range(1, ATTEMPTS + 1):
            if _receive(remote.url, part, bar, last=attempt == ATTEMPTS):
                break
    found = _sha256(part)
    if found != remote.sha256:
        part.unlink()
        raise DataError(
            f"{remote.url}: got a file with sha256 {found}, expected {remote.sha256}; it was thrown away. Try again, "
            "and if it stays so, the file has changed: get the one that was meant by hand and give its folder as path"
        )
    part.replace(done)
    return done


def fetch_unpacked(remote: Remote, folder: Path | None = None) -> Path:
    """Return the folder that a zip archive unpacks to; its one top folder where it has just one.

    Raises:
        DataError: as :func:`fetch`, or no zip archive, or one that writes outside its folder.
    """
    archive = fetch(remote, folder)
    target = archive.with_suffix(".unpacked")
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
            _unpack(archive, Path(scratch) / "files")
            with contextlib.suppress(FileExistsError, OSError):  # another process was faster: the content is the same
                (Path(scratch) / "files").replace(target)
    inside = list(target.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def _unpack(archive: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if not (target / name).resolve().is_relative_to(target.resolve()):
                    raise DataError(f"{archive}: got a member {name!r} that leaves its folder; do not use this archive")
            packed.extractall(target)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive} is no whole zip archive ({error}); delete it and try again") from error


def _receive(url: str, part: Path, bar: "_Bar", last: bool) -> bool:
    """Append what is missing to ``part``; False where the transfer broke off and may be tried again."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # http, https or file: as the source says
            resumed = response.status == 206
            left = response.headers.get("Content-Length")
            start = have if resumed else 0
            bar.begin(start, start + int(left) if left else None)
            with part.open("ab" if resumed else "wb") as out:
                received = _copy(response, out, bar)
            broken = left is not None and received < int(left)
            problem = f"got {received} of {left} bytes" if broken else ""
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # more on disk than the file has: start over
                part.unlink()
                return _receive(url, part, bar, last)
        raise DataError(f"{url}: the server says {error.code} {error.reason}; check the address") from error
    except (OSError, HTTPException) as error:
        problem = str(getattr(error, "reason", None) or error or type(error).__name__)
    if problem and last:
        kept = part.stat().st_size if part.is_file() else 0
        raise DataError(
            f"{url}: the download broke off ({problem}); {kept} bytes are kept and the next try goes on from there. "
            "Without a network, get the file by hand and give its folder as path"
        )
    return not problem


def _copy(response: HTTPResponse, out: IO[bytes], bar: "_Bar") -> int:
    received = 0
    while block := response.read(CHUNK_BYTES):
        out.write(block)
        received += len(block)
        bar.advance(len(block))
    return received


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Bar:
    """One download's progress bar."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task(name, total=None)

    def begin(self, done: int, total: int | None) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)


@contextlib.contextmanager
def _progress(name: str) -> Iterator[_Bar]:
    """Show a bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        yield _Bar(progress, name)
