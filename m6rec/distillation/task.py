"""Any task with a teacher's part in its loss. Knows neither the teacher nor the way that labels took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.distillation.lessons import Labels, Lesson
from m6rec.distillation.sources import Indices, LabelSource
from m6rec.tasks.base import Loss, Task, WrappedTask


@dataclass(frozen=True)
class LabelledBatch:
    """A batch and what teachers say of it.

    Args:
        batch: the task's own.
        labels: one a teacher.
    """

    batch: Any
    labels: list[Labels]

    def to(self, device: torch.device | str) -> "LabelledBatch":
        """Return it on ``device``."""
        return LabelledBatch(send_to_device(self.batch, device), send_to_device(self.labels, device))


class Numbered(Sequence[Any]):
    """Examples that know their numbers."""

    def __init__(self, examples: Sequence[Any]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        return int(index), self._examples[index]


class DistilTask(WrappedTask):
    """A task whose answers are also held against its teachers'.

    Args:
        inner: the task.
        lesson: what is taught, and how far off a student is.
        source: gives batches with labels.
        alpha: weight of the teachers' part; the task's own loss has the rest.

    Attributes:
        ahead: places of the epoch that are learnt ahead of their turn (free order); a checkpoint keeps them.

    Source: Hinton et al. (arXiv 1503.02531), section 2: alpha times T squared KL(teacher || student), the rest cross
        entropy; EDL-Dist (arXiv 2207.06667) for where the labels come from.
    """

    ahead: Tensor

    def __init__(self, inner: Task, lesson: Lesson, source: LabelSource, alpha: float) -> None:
        super().__init__(inner)
        self._lesson, self._source, self.alpha = lesson, source, alpha
        self.register_buffer("ahead", torch.zeros(0, dtype=torch.int64))

    def examples(self) -> Numbered:
        """Return the inner task's examples with their numbers."""
        return Numbered(self.inner.examples())

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Bring the inner task up to date and begin an epoch of labels."""
        super().refresh(backbone, epoch)
        self.ahead = self.ahead.new_zeros(0)
        examples = self.inner.examples()

        def collate(indices: Indices) -> Any:
            return self.inner.collate([examples[index] for index in indices])

        self._source.open(epoch, collate)

    def collate(self, examples: list[tuple[int, Any]]) -> LabelledBatch:
        """Return the next labelled batch: these examples, or in free order some others of the epoch."""
        indices = tuple(index for index, _ in examples)
        batch, labels, ahead = self._source.labelled(indices, self.ahead.tolist())
        self.ahead = torch.tensor(ahead, dtype=torch.int64, device=self.ahead.device)
        return LabelledBatch(batch, labels)

    def loss(self, backbone: Backbone, batch: LabelledBatch) -> Loss:
        """Return the weighted mean of the task's own loss and the mean distance from the teachers."""
        with self._lesson.heard(self.inner, backbone) as (view, heard):
            own = self.inner.loss(view, batch.batch)
        answers = self._lesson.answers(heard, batch.batch)
        distances = [self._lesson.distance(answers, labels, batch.batch) for labels in batch.labels]
        taught = torch.stack(distances).mean()
        figures = {**own.figures, "task": float(own.value.detach()), "taught": float(taught.detach())}
        return Loss((1 - self.alpha) * own.value + self.alpha * taught, own.weight, figures)
