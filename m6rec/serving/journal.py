"""An append-only log of changes that outlives every death of its process: what was acknowledged is on the disk.

A folder holds journals and snapshots by generation: ``00000007.journal`` are the changes after ``00000007/``, which
says how things stood before them. A snapshot becomes one by a rename, so it is there in whole or not at all. This
module knows neither what a change says nor what a snapshot holds.
"""

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from m6rec.errors import JournalError

Change = dict[str, Any]
JOURNAL, DRAFT, LOCK = ".journal", ".new", "LOCK"


class Journal:
    """Changes in the order in which they were made.

    One process at a time has it; its methods are not safe to call from two threads at once.

    Args:
        folder: of its own; made where it is missing.

    Attributes:
        generation: of the newest journal.
        size_bytes: of the newest journal.

    Raises:
        JournalError: the folder is another process's, cannot be written, or a journal is damaged in its middle.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._broken = Path(folder), ""
        self._lock = _locked(self.folder)
        try:
            self._clean()
            self._open(max([*self._journals(), *self._snapshots()], default=1))
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def snapshot(self) -> Path | None:
        """The newest snapshot's folder."""
        newest = max(self._snapshots(), default=None)
        return None if newest is None else self._place(newest)

    def replay(self) -> Iterator[Change]:
        """Yield every change since the snapshot, oldest first.

        Raises:
            JournalError: a journal is damaged in its middle.
        """
        for generation in sorted(self._journals()):
            yield from _read(self._journal(generation))[0]

    def append(self, changes: Sequence[Change]) -> None:
        """Write changes and return once the disk has them; on an error none of them is kept.

        Raises:
            JournalError: the disk is full or fails.
        """
        if self._broken:
            raise JournalError(f"{self.folder} takes no more changes since {self._broken}; look at the disk, restart")
        words = b"".join(_line(change) for change in changes)
        try:
            _write(self._file, words)
            os.fsync(self._file)
        except OSError as error:
            self._undo(error)
            raise JournalError(
                f"{self.folder}: nothing was changed, for it cannot be kept ({error}); make room"
            ) from error
        self.size_bytes += len(words)

    def rotate(self) -> int:
        """Begin a new journal and return its generation: the next snapshot is of what stands before it.

        Raises:
            JournalError: the disk is full or fails; the former journal goes on.
        """
        former = self._file
        try:
            self._open(self.generation + 1)
        except OSError as error:
            raise JournalError(f"{self.folder}: no new journal can be begun ({error}); make room") from error
        os.close(former)
        return self.generation

    def keep_snapshot(self, generation: int, write: Callable[[Path], None]) -> None:
        """Write how things stood before a generation, and drop what it makes needless.

        May run beside :meth:`append`, in another thread.

        Args:
            generation: as :meth:`rotate` returned it.
            write: fills an empty folder.

        Raises:
            JournalError: the disk is full or fails; the journals and the former snapshot stay.
        """
        draft = self._place(generation).with_suffix(DRAFT)
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            write(draft)
            for path in (*draft.iterdir(), draft):
                _sync(path)
            os.rename(draft, self._place(generation))
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise JournalError(f"{self.folder}: no snapshot can be kept ({error}); make room") from error
        self._drop_older(generation)

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self._file)
        os.close(self._lock)

    def _open(self, generation: int) -> None:
        path = self._journal(generation)
        intact = _read(path)[1] if path.exists() else 0
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.ftruncate(file, intact)  # a torn last line was never acknowledged
        os.fsync(file)
        _sync(self.folder)
        self._file, self.generation, self.size_bytes = file, generation, intact

    def _undo(self, why: OSError) -> None:
        try:
            os.ftruncate(self._file, self.size_bytes)
            os.fsync(self._file)
        except OSError:
            # What a failed fsync leaves on the disk is unknown; going on could put changes behind a torn one.
            self._broken = str(why)

    def _clean(self) -> None:
        for draft in self.folder.glob(f"*{DRAFT}"):
            shutil.rmtree(draft, ignore_errors=True)
        self._drop_older(max(self._snapshots(), default=0))

    def _drop_older(self, generation: int) -> None:
        for old in self._journals():
            if old < generation:
                self._journal(old).unlink(missing_ok=True)
        for old in self._snapshots():
            if old < generation:
                shutil.rmtree(self._place(old), ignore_errors=True)

    def _journals(self) -> list[int]:
        return [int(path.stem) for path in self.folder.glob(f"*{JOURNAL}") if path.stem.isdigit()]

    def _snapshots(self) -> list[int]:
        return [int(path.name) for path in self.folder.iterdir() if path.is_dir() and path.name.isdigit()]

    def _journal(self, generation: int) -> Path:
        return self._place(generation).with_suffix(JOURNAL)

    def _place(self, generation: int) -> Path:
        return self.folder / f"{generation:08d}"


def _locked(folder: Path) -> int:
    """Return the open file that keeps other processes out of a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise JournalError(f"{folder} cannot be written ({error}); give a folder on a disk that can") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise JournalError(f"{folder} is another process's; stop that one, or give this one a folder") from error
    return lock


def _line(change: Change) -> bytes:
    """Return a change as a line that begins with the checksum of the rest."""
    words = json.dumps(change, ensure_ascii=True, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(words), words)


def _read(path: Path) -> tuple[list[Change], int]:
    """Return the changes in a journal, and how many bytes are intact.

    Raises:
        JournalError: a whole line stands behind a damaged one, so this is no torn end.
    """
    changes: list[Change] = []
    intact, damaged = 0, False
    for line in path.read_bytes().splitlines(keepends=True):
        change = _change(line)
        if change is None:
            damaged = True
        elif damaged:
            raise JournalError(f"{path} is damaged at byte {intact}, with changes behind; restore it from a copy")
        else:
            changes.append(change)
            intact += len(line)
    return changes, intact


def _change(line: bytes) -> Change | None:
    """Return what a line says; ``None`` = it is not whole."""
    checksum, _, words = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(words):
        return None
    change: Change = json.loads(words)
    return change


def _write(file: int, words: bytes) -> None:
    """Write all of it, for the system may take it in pieces."""
    left = memoryview(words)
    while left:
        left = left[os.write(file, left) :]


def _sync(path: Path) -> None:
    """Have the disk keep a file, or a folder's names."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
