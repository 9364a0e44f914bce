"""A task learnt in its scenes: every row meets its scene's part of the backbone, and pays what that part asks.

The wrapped task learns of neither: it is handed an activated backbone, one batch at a time. To evaluate or serve the
task inside, activate the backbone for the request's scene. This module knows no task and no tuner.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m6rec.backbones.base import Backbone
from m6rec.backbones.scenes import ActiveBackbone, in_scenes
from m6rec.tasks.base import Loss, Task, WrappedTask

logger = logging.getLogger(__name__)


class SceneTask(WrappedTask):
    """A task whose every example is learnt in its own scene.

    Args:
        inner: the task; its ``scenes()`` says which scene each example is of, and without it all are of the first.
        balanced: whether an epoch draws every scene in proportion to the square root of its size.
        seed: of the draw.

    Source: Jiang et al., IAK (arXiv 2501.14268): domain activation; "dynamic batch-aware training" for domains of very
        different size.
    Differs: how the paper sizes its batches was not open to us. Square roots are the usual middle between what the
        log holds and what every scene would like (Arivazhagan et al., arXiv 1907.05019, temperature 2).
    """

    def __init__(self, inner: Task, balanced: bool = False, seed: int = 0) -> None:
        super().__init__(inner)
        self.balanced, self.seed, self._epoch = balanced, seed, 0

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Bring the inner task up to date; a new epoch draws its examples anew."""
        super().refresh(backbone, epoch)
        self._epoch = epoch

    def examples(self) -> "Placed":
        """Return this epoch's examples with their scenes."""
        order = self._order()
        return Placed(self.inner.examples(), order, self._scenes()[order])

    def lengths(self) -> Sequence[int] | None:
        """Return the length of each of this epoch's examples."""
        lengths = self.inner.lengths()
        return None if lengths is None else np.asarray(lengths)[self._order()].tolist()

    def scenes(self) -> NDArray[np.integer]:
        """Return the scene of each of this epoch's examples."""
        return self._scenes()[self._order()]

    def collate(self, examples: list[tuple[Any, int]]) -> dict[str, Any]:
        """Make one batch of the inner task's, with the scene of each row."""
        inner, scenes = zip(*examples, strict=True)
        return {"inner": self.inner.collate(list(inner)), "scenes": torch.tensor(scenes)}

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Loss:
        """Return the inner task's loss in the rows' scenes, and the penalty of what they went through."""
        active = in_scenes(backbone, batch["scenes"])
        loss = self.inner.loss(active, batch["inner"])
        if not isinstance(active, ActiveBackbone):
            return loss
        penalty = active.penalty()
        return Loss(loss.value + penalty, loss.weight, {**loss.figures, "penalty": float(penalty.detach())})

    def log_sizes(self, names: Sequence[str]) -> None:
        """Log how many examples each scene has, and how many an epoch draws."""
        held, drawn = (np.bincount(scenes, minlength=len(names)) for scenes in (self._scenes(), self.scenes()))
        sizes = [f"{name} {count:,} ({draws:,})" for name, count, draws in zip(names, held, drawn, strict=True)]
        logger.info("examples by scene (drawn an epoch): %s", ", ".join(sizes))

    def _scenes(self) -> NDArray[np.integer]:
        scenes = self.inner.scenes()
        return np.zeros(len(self.inner.examples()), dtype=np.int64) if scenes is None else scenes

    def _order(self) -> NDArray[np.int64]:
        scenes = self._scenes()
        return balanced_draw(scenes, [self.seed, self._epoch]) if self.balanced else np.arange(len(scenes))


class Placed(Sequence[tuple[Any, int]]):
    """Chosen examples, each with the number of its scene.

    Args:
        examples: all of them.
        order: which, in order.
        scenes: of each that was chosen.
    """

    def __init__(self, examples: Sequence[Any], order: NDArray[np.int64], scenes: NDArray[np.integer]) -> None:
        self._examples, self._order, self._scenes = examples, order, scenes

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        return self._examples[int(self._order[index])], int(self._scenes[index])


def balanced_draw(scenes: NDArray[np.integer], seed: Sequence[int]) -> NDArray[np.int64]:
    """Return as many example numbers as there are examples, of each scene in proportion to the root of its size.

    Inside a scene all examples come equally often, give or take one.

    Args:
        scenes: ``[num_examples]``.
        seed: of the choice.

    >>> np.bincount(np.repeat([0, 1], [90, 10])[balanced_draw(np.repeat([0, 1], [90, 10]), [0])]).tolist()
    [75, 25]
    """
    rng = np.random.default_rng(seed)
    present, sizes = np.unique(scenes, return_counts=True)
    ends = np.rint(len(scenes) * np.cumsum(np.sqrt(sizes)) / np.sqrt(sizes).sum()).astype(np.int64)
    chosen = []
    for scene, draws in zip(present, np.diff(ends, prepend=0), strict=True):
        members = np.flatnonzero(scenes == scene)
        rounds, rest = divmod(int(draws), len(members))
        chosen += [np.tile(members, rounds), rng.choice(members, rest, replace=False)]
    return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
