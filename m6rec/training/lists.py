"""Mined lists on disk: what a retriever found for each moment, and the numbers that a ranker goes by.

Parts are written whole or not at all, so that mining can stop anywhere and go on. Knows no model.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from m6rec.errors import RunError

MANIFEST = "lists.json"


@dataclass(frozen=True)
class Lists:
    """One list a moment; the target stands first, then what was found, best first.

    Args:
        events: ``[num_lists]`` int64 number of the target's event in the training histories, -1 = no target.
        ids: ``[num_lists, 1 + depth]`` int32 items, -1 = none.
        numbers: ``[num_lists, 1 + depth, num_numbers]`` float32 what a judge goes by, for each item.
        states: ``[num_lists, dim]`` float16 the retriever's user vectors, of length one.
    """

    events: NDArray[np.int64]
    ids: NDArray[np.int32]
    numbers: NDArray[np.float32]
    states: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.events)

    @classmethod
    def joined(cls, parts: "list[Lists]") -> "Lists":
        """Return the lists of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


class ListFolder:
    """A folder of parts.

    Args:
        folder: where they lie.
        key: everything that the lists depend on.
        num_parts: how many there will be.

    Raises:
        RunError: the folder holds the lists of another key.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], num_parts: int) -> None:
        self.folder, self.num_parts = Path(folder), num_parts
        content = {"key": hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest(), "num_parts": num_parts}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if path.is_file() and path.read_text(encoding="utf-8") != json.dumps(content):
            raise RunError(f"{folder} holds lists that another retriever or another setting made; remove the folder")
        _replace(path, lambda draft: draft.write_text(json.dumps(content), encoding="utf-8"))

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are missing or broken."""
        return [part for part in range(self.num_parts) if _read(self._path(part)) is None]

    def make(self, part: int, maker: Callable[[int], Lists]) -> None:
        """Make and keep one part."""
        made = maker(part)
        columns = {field.name: np.ascontiguousarray(getattr(made, field.name)) for field in fields(made)}
        _replace(self._path(part), lambda draft: save_file(columns, draft))

    def fill(self, maker: Callable[[int], Lists], rank: int = 0, num_processes: int = 1) -> int:
        """Make every part that is missing or broken, this process its share; return how many were made."""
        mine = [part for part in self.missing() if part % num_processes == rank]
        for part in mine:
            self.make(part, maker)
        return len(mine)

    def read(self) -> Lists:
        """Return all lists.

        Raises:
            RunError: a part is missing or broken: mining was interrupted.
        """
        parts = [_read(self._path(part)) for part in range(self.num_parts)]
        if broken := [number for number, part in enumerate(parts) if part is None]:
            raise RunError(
                f"{self.folder}: {len(broken)} of {self.num_parts} parts are missing or broken (the first is "
                f"{self._path(broken[0]).name}): mining was interrupted; go on with --resume"
            )
        return Lists.joined([part for part in parts if part is not None])

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.safetensors"


def _read(path: Path) -> Lists | None:
    """Return one part, or ``None`` where there is no whole one."""
    try:
        columns = load_file(path)
        return Lists(**columns)
    except (OSError, SafetensorError, TypeError):
        return None


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    write(draft)
    os.replace(draft, path)
