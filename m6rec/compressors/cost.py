"""What a model costs: parameters, bytes, milliseconds. This module knows no method."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class Size:
    """How large a model is, every weight counted once.

    Args:
        parameters: weights; one that several layers use counts once.
        nonzero: those that are not zero.
        bytes: of the weights as they are stored in memory.
    """

    parameters: int
    nonzero: int
    bytes: int

    @staticmethod
    def of(model: nn.Module) -> "Size":
        """Count a module."""
        weights = list(model.parameters())  # torch names a shared parameter once
        return Size(
            parameters=sum(weight.numel() for weight in weights),
            nonzero=sum(int(weight.count_nonzero()) for weight in weights),
            bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        )


def megabytes(path: Path) -> float:
    """Return the size of a file, or of a folder with all that is in it, in MB (10^6 bytes)."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def cpu_ms(calls: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Return the median CPU-milliseconds of each call, all taken in turns so that a busy machine disturbs all alike.

    Args:
        calls: name -> what to time.
        repeats: how many turns; one more goes before, uncounted.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if turn:
                taken[name].append(1000 * (time.process_time() - started))
    return {name: statistics.median(values) for name, values in taken.items()}
