"""What a task is: examples, a batch of them, and a loss on a backbone.

The loop knows only this. This module knows no task.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from m6rec.backbones.base import Backbone


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


class Task(nn.Module, ABC):
    """Something to learn: its heads are its own parameters, the backbone is handed in.

    Attributes:
        name: shelf name.
    """

    name: str

    @abstractmethod
    def examples(self) -> Sequence[Any]:
        """Return the training examples: sized and indexable, cheap to index, nothing of a held-out period inside."""

    @abstractmethod
    def collate(self, examples: list[Any]) -> Any:
        """Make one batch: a (nested) dict of tensors, or a dataclass with ``to(device)``."""

    @abstractmethod
    def loss(self, backbone: Backbone, batch: Any) -> Loss:
        """Return the loss of one batch."""

    def lengths(self) -> Sequence[int] | None:
        """Return each example's length for bucketed batches, or ``None``."""
        return None

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Bring anything cached from the backbone up to date before ``epoch`` (default: nothing)."""
        return
