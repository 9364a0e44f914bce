"""The processes of a run: accelerate set up so that it adds nothing of its own to the numbers.

This module knows no model, task or loop.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, is_tensorboard_available

from m6rec.errors import MissingExtraError
from m6rec.training.config import TrainingConfig


def build_accelerator(config: TrainingConfig, out: Path) -> Accelerator:
    """Return the accelerator of a run.

    Args:
        config: says which tracker.
        out: the run's folder; the tracker writes below it.

    Raises:
        MissingExtraError: the tracker is not installed.
    """
    tracked = config.tracker == "tensorboard"
    if tracked and not is_tensorboard_available():
        raise MissingExtraError("tensorboard", "bench")
    # A task need not use every parameter in every batch. Its buffers are equal by construction (same seed, same
    # weights), so they are not sent around.
    settings = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(
        # Without this, two processes on a machine without an accelerator would each take itself for the only one.
        cpu=not torch.accelerator.is_available(),
        # The learner computes in bf16 and the loop accumulates by themselves; said outright, because accelerate would
        # otherwise take both from the environment that `accelerate launch` sets.
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[settings],
        log_with="tensorboard" if tracked else None,
        project_dir=out,
    )
    if tracked:
        accelerator.init_trackers("tensorboard")
    return accelerator


def sum_over_processes(accelerator: Accelerator, numbers: list[float]) -> list[float]:
    """Return each number's sum over all processes."""
    if accelerator.num_processes == 1:
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    summed: list[float] = accelerator.reduce(tensor, reduction="sum").tolist()
    return summed
