"""What a task is: examples, a batch of them, and a loss on a backbone.

The loop knows only this. This module knows no task.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.data.store import Dataset
from m6rec.tasks.catalogue import Catalogue
from m6rec.text.render import Renderer


@dataclass(frozen=True)
class Loss:
    """What one batch gives the loop.

    Args:
        value: scalar mean loss to back-propagate.
        weight: how many targets the mean is over (accumulation and processes weigh by it).
        figures: plain numbers to show and log.
    """

    value: Tensor
    weight: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What a task is built from.

    Args:
        dataset: the prepared folder.
        renderer: the domain's words.
        cache: folder for what is computed once and can be computed again.
        seed: of every random choice.
    """

    dataset: Dataset
    renderer: Renderer
    cache: Path
    seed: int = 0


class Task(nn.Module, ABC):
    """Something to learn: its heads are its own parameters, the backbone is handed in.

    Attributes:
        name: shelf name.
        Config: the frozen dataclass of its settings.
        catalogue: the items that it knows.
    """

    name: str
    Config: ClassVar[type]
    catalogue: Catalogue

    @classmethod
    @abstractmethod
    def build(cls, config: Any, material: Material, backbone: Backbone) -> "Task":
        """Return a new task over a dataset, ready to train."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything that inference needs into ``folder`` (the backbone and its adapter excepted)."""

    @classmethod
    @abstractmethod
    def load(cls, config: Any, folder: Path, renderer: Renderer, backbone: Backbone) -> "Task":
        """Read what ``save`` wrote; the dataset is not needed.

        Raises:
            RunError: the folder is incomplete or damaged.
        """

    @abstractmethod
    def examples(self) -> Sequence[Any]:
        """Return the training examples: sized and indexable, cheap to index, nothing of a held-out period inside."""

    @abstractmethod
    def collate(self, examples: list[Any]) -> Any:
        """Make one batch: a (nested) dict of tensors, or a dataclass with ``to(device)``."""

    @abstractmethod
    def loss(self, backbone: Backbone, batch: Any) -> Loss:
        """Return the loss of one batch."""

    @abstractmethod
    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote into a task that was built over the same dataset, to evaluate it.

        Raises:
            RunError: the folder is incomplete or damaged.
        """

    @property
    def trains_backbone(self) -> bool:
        """Whether the loss reaches the backbone; if not, it is frozen whole."""
        return True

    def finish(self, backbone: Backbone) -> None:
        """Compute what inference needs from the trained weights, once (default: nothing)."""
        return

    def lengths(self) -> Sequence[int] | None:
        """Return each example's length for bucketed batches, or ``None``."""
        return None

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Bring anything cached from the backbone up to date before ``epoch`` (default: nothing)."""
        return
