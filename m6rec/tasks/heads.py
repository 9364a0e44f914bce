"""A task's own weights and names on disk. Knows no task."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m6rec.errors import RunError

WEIGHTS, NAMES = "heads.safetensors", "heads.json"


def save_heads(module: nn.Module, folder: Path, names: Mapping[str, Any]) -> None:
    """Write a task's parameters and buffers, and what cannot be a tensor, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / NAMES).write_text(json.dumps(dict(names), ensure_ascii=False, indent=1), encoding="utf-8")


def read_names(folder: Path) -> dict[str, Any]:
    """Return the names that ``save_heads`` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        names: dict[str, Any] = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder}: no task in this run ({error}); expected {NAMES} and {WEIGHTS}: train again"
        ) from error
    return names


def load_heads(module: nn.Module, folder: Path) -> None:
    """Read a task's parameters and buffers.

    Raises:
        RunError: the file is missing, damaged, or of other settings.
    """
    tensors = read_tensors(folder / WEIGHTS)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{folder / WEIGHTS} holds a task of other settings ({error}); train again") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot read the run's weights ({error}); train again") from error
    return tensors
