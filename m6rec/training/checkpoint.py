"""Checkpoints: named tensors and one JSON object, written whole or not at all.

Layout: ``step-00000100/{<name>.safetensors..., state.json}``; ``state.json`` is written last and holds every other
file's size and hash, so a broken checkpoint is known as one. Nothing is ever unpickled. This module knows no model,
optimiser or loop.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m6rec.errors import CheckpointError

FORMAT = 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk, found whole.

    Args:
        folder: where it lies.
        state: what its ``state.json`` holds.
    """

    folder: Path
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors that were saved under ``name``; none where nothing was."""
        path = _file(self.folder, name)
        tensors: dict[str, Tensor] = load_file(path) if path.is_file() else {}
        return tensors


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved.
        keep: newest ones to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(
        self,
        name: str,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        needs: str | None = None,
    ) -> Path:
        """Write one checkpoint atomically: into a folder beside, to the disk, then under its name.

        Args:
            name: folder name, e.g. ``"step-00000100"``.
            tensors: file name -> tensor name -> tensor.
            state: anything JSON can hold.
            needs: another checkpoint that must live as long as this one.

        Raises:
            CheckpointError: it cannot be written; everything that was there is as it was.
        """
        target = self.folder / name
        half = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            half = Path(tempfile.mkdtemp(prefix=".half-", dir=self.folder))
            _write(half, tensors, {"format": FORMAT, "needs": needs, "state": state})
            if target.exists():
                target.rename(half.with_name(f"{half.name}-former"))
            half.rename(target)
            _to_disk(self.folder)
        except (OSError, SafetensorError) as error:
            if half is not None:
                shutil.rmtree(half, ignore_errors=True)
            raise CheckpointError(
                f"cannot write checkpoint {target}: {error}; the former one is untouched: make room, then resume"
            ) from error
        return target

    def open(self, name: str) -> Checkpoint:
        """Read and check one checkpoint.

        Raises:
            CheckpointError: missing, broken, or of another version.
        """
        folder = self.folder / name
        content = _read(folder)
        for file_name, expected in content["files"].items():
            path = folder / file_name
            if not path.is_file() or _fingerprint(path) != expected:
                raise CheckpointError(f"{folder} is no whole checkpoint: {file_name} is missing or damaged")
        return Checkpoint(folder, content["state"])

    def steps(self) -> list[str]:
        """Return the names of the step checkpoints, oldest first, whole or not."""
        return sorted(path.name for path in self.folder.glob("step-*") if path.is_dir())

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; ``None`` where there never was one.

        Raises:
            CheckpointError: there are some, and every one is broken.
        """
        names = self.steps()
        for name in reversed(names):
            try:
                return self.open(name)
            except CheckpointError as error:
                logger.warning("skipping a checkpoint: %s", error)
        if names:
            raise CheckpointError(f"every checkpoint in {self.folder} is broken; remove the folder to start anew")
        return None

    def prune(self) -> None:
        """Remove older steps, what no kept one needs, and half-written folders."""
        kept = set(self.steps()[-self.keep :])
        for name in kept.copy():
            with contextlib.suppress(CheckpointError):  # a broken one needs nothing
                kept.add(_read(self.folder / name)["needs"])
        for path in [*self.folder.glob("step-*"), *self.folder.glob("best-*"), *self.folder.glob(".half-*")]:
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def step_name(step: int) -> str:
    """Return a checkpoint's folder name.

    >>> step_name(100)
    'step-00000100'
    """
    return f"step-{step:08d}"


def best_name(step: int) -> str:
    """Return the folder name of the weights that were the best so far at ``step``."""
    return f"best-{step:08d}"


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], content: dict[str, Any]) -> None:
    for name, group in tensors.items():
        save_file({key: value.detach().cpu().contiguous() for key, value in group.items()}, _file(folder, name))
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / "state.json").write_text(json.dumps(content | {"files": files}, indent=1), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _to_disk(path)


def _read(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        version = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no whole checkpoint: cannot read state.json ({error!r})") from error
    if version != FORMAT:
        raise CheckpointError(f"{folder} has format {version}, expected {FORMAT}; resume with the m6rec that wrote it")
    return content


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
