"""A run without its items: what is left of a task's files when the catalogue may not leave the house.

This module knows the names of what tasks save for each item, and no task.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.heads import WEIGHTS, read_tensors

CATALOGUE = "catalogue"
LINKS = "links.safetensors"
# What the heads hold of single items, and what stands for it where there is none.
_PER_ITEM: dict[str, Callable[[Tensor], Tensor]] = {
    "item_statistics": lambda table: table[:0],
    "probe_items": lambda places: torch.full_like(places, -1),
    "at_training": lambda counts: counts * torch.tensor([0.0, 1.0], dtype=counts.dtype),
}
_RESIDUALS = "tower.residual."


def withhold_items(folder: Path) -> dict[str, Any]:
    """Take every item out of what a task has saved; it then knows items by their text alone, and starts without any.

    Args:
        folder: the task's.

    Returns:
        Settings of the task that have to change with it.

    Raises:
        RunError: the folder is incomplete or damaged.
    """
    heads = read_tensors(folder / WEIGHTS)
    residuals = [name for name in heads if name.startswith(_RESIDUALS)]
    kept = {name: _PER_ITEM.get(name, Tensor.clone)(tensor) for name, tensor in heads.items() if name not in residuals}
    save_file(kept, folder / WEIGHTS)
    if (folder / LINKS).is_file():
        none = {
            "link_offsets": np.zeros(1, np.int64),
            "link_items": np.zeros(0, np.int32),
            "link_weights": np.zeros(0, np.float32),
        }
        save_file({name: torch.from_numpy(values) for name, values in none.items()}, folder / LINKS)
    _empty_catalogue(folder / CATALOGUE)
    return {"id_residual": False} if residuals else {}


def _empty_catalogue(folder: Path) -> None:
    encoded = (folder / "vectors.safetensors").is_file()
    catalogue = Catalogue.load(folder, encoded)
    vectors = None if catalogue.vectors is None else catalogue.vectors[:0]
    Catalogue([], [], [], catalogue.ids[:0], catalogue.offered[:0], vectors).save(folder)
