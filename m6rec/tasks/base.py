"""What a task is: examples, a batch of them, and a loss on a backbone.

The loop knows only this. This module knows no task.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.data.histories import Split
from m6rec.data.scenes import SceneRule
from m6rec.data.store import Dataset
from m6rec.errors import RunError
from m6rec.tasks.catalogue import Catalogue
from m6rec.text.render import Renderer

Built = TypeVar("Built")


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
        scenes: which scene an example is of; ``None`` = all are of one.
    """

    dataset: Dataset
    renderer: Renderer
    cache: Path
    seed: int = 0
    scenes: SceneRule | None = None


def built_over(material: Built | None) -> Built:
    """Return what a task was built over.

    Raises:
        RunError: nothing: the task was loaded.
    """
    if material is None:
        raise RunError("this task was loaded for inference; build it over a dataset to train or evaluate it")
    return material


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

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn; a task that needs nothing is ready as it is built."""
        return True

    def finish(self, backbone: Backbone) -> None:
        """Compute what inference needs from the trained weights, once (default: nothing)."""
        return

    def measure(
        self, backbone: Backbone, split: Split, at_most: int | None = None, seed: int = 0
    ) -> dict[str, float] | None:
        """Return the task's own figures on what is held out, where it is not rankings that are evaluated.

        Args:
            backbone: tuned.
            split: ``"valid"`` or ``"test"``.
            at_most: how many held-out examples are drawn; ``None`` = all.
            seed: of the draw.

        Returns:
            Figures by name (perplexity, AUC, ...), or ``None`` where the split holds nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} is evaluated by its rankings")

    def lengths(self) -> Sequence[int] | None:
        """Return each example's length for bucketed batches, or ``None``."""
        return None

    def scenes(self) -> NDArray[np.integer] | None:
        """Return the number of each example's scene, or ``None`` where the task's examples have none."""
        return None

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Bring anything cached from the backbone up to date before ``epoch`` (default: nothing)."""
        return


class WrappedTask(Task):
    """A task around another one: everything is the inner one's, until a subclass says otherwise.

    The loop learns the wrapper; what is kept, evaluated and served is the task inside.

    Args:
        inner: the task to wrap.
    """

    def __init__(self, inner: Task) -> None:
        super().__init__()
        self.inner, self.name, self.catalogue = inner, inner.name, inner.catalogue

    @classmethod
    def build(cls, config: Any, material: Material, backbone: Backbone) -> "Task":
        """Refuse: a wrapper is put around a task that stands."""
        raise TypeError(f"{cls.__name__} wraps a task: build that one")

    @classmethod
    def load(cls, config: Any, folder: Path, renderer: Renderer, backbone: Backbone) -> "Task":
        """Refuse: the task inside is what is kept."""
        raise TypeError(f"{cls.__name__} wraps a task: load that one")

    def save(self, folder: Path) -> None:
        """Write what the inner task needs for inference."""
        self.inner.save(folder)

    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote."""
        self.inner.restore(folder, backbone)

    def examples(self) -> Sequence[Any]:
        """Return the training examples."""
        return self.inner.examples()

    def collate(self, examples: list[Any]) -> Any:
        """Make one batch."""
        return self.inner.collate(examples)

    def loss(self, backbone: Backbone, batch: Any) -> Loss:
        """Return the loss of one batch."""
        return self.inner.loss(backbone, batch)

    @property
    def trains_backbone(self) -> bool:
        """Whether the loss reaches the backbone."""
        return self.inner.trains_backbone

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return self.inner.learns

    def finish(self, backbone: Backbone) -> None:
        """Compute what inference needs from the trained weights."""
        self.inner.finish(backbone)

    def measure(
        self, backbone: Backbone, split: Split, at_most: int | None = None, seed: int = 0
    ) -> dict[str, float] | None:
        """Return the inner task's own figures."""
        return self.inner.measure(backbone, split, at_most, seed)

    def lengths(self) -> Sequence[int] | None:
        """Return each example's length."""
        return self.inner.lengths()

    def scenes(self) -> NDArray[np.integer] | None:
        """Return the number of each example's scene."""
        return self.inner.scenes()

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Bring anything cached up to date."""
        self.inner.refresh(backbone, epoch)
