"""A folder that appears whole or not at all. This module knows no table."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from m6rec.data.schema import MANIFEST_FILE
from m6rec.errors import DataError


def check_target(out: Path) -> None:
    """Refuse a path where a dataset folder must not be written.

    Raises:
        DataError: ``out`` is a file, or a folder with something in it that is no dataset.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, expected a folder to write; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise DataError(f"{out} holds files but no {MANIFEST_FILE}, so it is no dataset of ours; choose another --out")


@contextlib.contextmanager
def fresh_folder(out: Path) -> Iterator[tuple[Path, Path]]:
    """Give a folder to fill and a folder for scratch files; at the end the first one takes the place of ``out``.

    Until then everything lies in one hidden folder beside ``out``, and a failure of any kind removes it and leaves what
    was at ``out`` as it was.

    Yields:
        The folder to fill, and the scratch folder.

    Raises:
        DataError: see :func:`check_target`; or the disk refused (full, read-only).
    """
    check_target(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise DataError(f"cannot write beside {out}: {error}") from error
    try:
        fresh, scratch = work / "dataset", work / "scratch"
        fresh.mkdir()
        scratch.mkdir()
        yield fresh, scratch
        _sync(fresh)
        _replace(out, fresh, work / "before")
    except OSError as error:
        raise DataError(f"cannot write {out}: {error}; what was there is unchanged") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(out: Path, fresh: Path, aside: Path) -> None:
    if out.exists():
        os.rename(out, aside)
    try:
        os.rename(fresh, out)
    except OSError:
        if aside.exists():
            os.rename(aside, out)
        raise
    _sync_path(out.parent)


def _sync(folder: Path) -> None:
    """Push every file of ``folder`` to the disk, so that a power cut cannot leave a whole name on half a file."""
    for path in folder.iterdir():
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
