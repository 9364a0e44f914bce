"""Backbone and task as one module, and the exact gradient of a batch that is run in pieces.

This module knows no optimiser, file or schedule.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from m6rec.backbones.base import Backbone
from m6rec.tasks.base import Loss, Task
from m6rec.training.stream import Piece

logger = logging.getLogger("m6rec.training")


class Learner(nn.Module):
    """Backbone and task as the one module that accelerate wraps.

    Args:
        backbone: tuned.
        task: with its heads.
        bf16: whether the forward pass computes in bfloat16.
    """

    def __init__(self, backbone: Backbone, task: Task, bf16: bool) -> None:
        super().__init__()
        self.backbone, self.task, self.bf16 = backbone, task, bf16

    def forward(self, batch: Any) -> Loss:
        """Return the task's loss of one batch."""
        kind = next(self.parameters()).device.type
        # Our own autocast instead of accelerate's: that one patches forward for good and holds one precision a process.
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.bf16):
            return self.task.loss(self.backbone, batch)


@dataclass
class Totals:
    """Sums over the pieces of one step.

    Args:
        weight: targets, over all processes.
        loss: loss times weight, over all processes.
        own_weight: targets of this process.
        figures: the task's figures times weight, of this process.
    """

    weight: float = 0.0
    loss: float = 0.0
    own_weight: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, loss: Loss, weight: float) -> None:
        """Take in one piece."""
        self.own_weight += weight
        self.weight += weight
        self.loss += float(loss.value.detach()) * weight if weight else 0.0
        for name, value in loss.figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + value * weight


def backward(
    accelerator: Accelerator, learner: nn.Module, task: Task, examples: Sequence[Any], pieces: Sequence[Piece]
) -> Totals:
    """Run every piece forward and backward; gradients become the weighted *sum* over this process's pieces.

    Processes exchange gradients once, in the last piece. A piece's loss is multiplied by its weight, so that
    :func:`average_gradients` can divide by the weight of all pieces of all processes, which nobody knows before.

    Args:
        accelerator: wraps ``learner``.
        learner: the wrapped :class:`Learner`.
        task: collates.
        examples: indexed by the pieces.
        pieces: what this process runs.

    Returns:
        This process's sums.
    """
    totals = Totals()
    for turn, piece in enumerate(pieces, start=1):
        batch = send_to_device(task.collate([examples[index] for index in piece.indices]), accelerator.device)
        with nullcontext() if turn == len(pieces) else accelerator.no_sync(learner):
            loss = learner(batch)
            weight = float(loss.weight) if piece.counted else 0.0
            accelerator.backward(loss.value.float() * weight)
        totals.add(loss, weight)
    return totals


@torch.no_grad()
def average_gradients(trained: Iterable[nn.Parameter], weight: float, num_processes: int) -> None:
    """Turn summed gradients into the gradient of the mean loss over all targets of the step.

    Args:
        trained: parameters whose gradients were summed in each process and averaged over processes.
        weight: targets of all pieces of all processes.
        num_processes: undoes the average over processes.
    """
    for parameter in trained:
        if parameter.grad is not None:
            parameter.grad.mul_(num_processes / weight if weight else 0.0)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to compute in bfloat16: where asked for, or (``auto``) where the hardware does it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # oneDNN also says yes where it emulates bf16 with AVX-512, which is slower than fp32: ask the processor.
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
