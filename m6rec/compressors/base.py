"""What a compressor is: a way from a finished run to a cheaper one that answers the same requests.

This module knows no method, and no way to open or train a run: both are handed in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from m6rec.backbones.base import Backbone
from m6rec.tasks.base import Task
from m6rec.tasks.ranking.task import Answer


@dataclass(frozen=True)
class Subject:
    """A finished run over its dataset, and what a compressor may ask for.

    Args:
        folder: the run's.
        recipe: its settings as plain values.
        backbone: tuned.
        task: over its dataset.
        retrain: how to train its recipe anew with other settings.
        measure: backbone -> held-out figures of the run's task on it.
        judge: the same for a ranking run that anything else answers, on fewer pairs.
    """

    folder: Path
    recipe: Mapping[str, Any]
    backbone: Backbone
    task: Task
    retrain: "Retrain"
    measure: Callable[[Backbone], dict[str, float]]
    judge: Callable[[Answer], dict[str, float]]


class Retrain(Protocol):
    """Train a run's recipe anew with other settings; goes on where it was interrupted."""

    def __call__(
        self,
        out: Path,
        changes: Mapping[str, Any],
        wrap: Callable[[Task, Backbone], Task] | None = None,
        distil: bool = False,
    ) -> Subject:
        """Return the new run, opened.

        Args:
            out: its folder.
            changes: settings that differ.
            wrap: task, backbone -> what the loop learns in the task's place.
            distil: whether the new backbone also learns to relate tokens as the run's does.
        """
        ...


@runtime_checkable
class Compressor(Protocol):
    """Make a run cheaper.

    Attributes:
        Config: the frozen dataclass of its settings.
        config: its settings.
    """

    Config: type
    config: Any

    def compress(self, subject: Subject, out: Path) -> dict[str, Any]:
        """Write the compressed run into ``out``, which ``m6rec.load`` opens, and return what its card says of it.

        Raises:
            ConfigError: a setting does not fit the run.
            RunError: the run cannot be compressed so.
        """
        ...
