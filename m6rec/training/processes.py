"""The processes of a run: accelerate set up so that it adds nothing of its own to the numbers.

This module knows no model, task or loop.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, is_tensorboard_available

from m6rec.errors import MissingExtraError, RunError
from m6rec.training.config import TrainingConfig

# What gloo and NCCL say, each in its own way and none by a type of its own, when another process is gone.
_GONE = ("closed by peer", "reset by peer", "broken pipe", "timed out", "remote process", "connection refused")


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


@contextmanager
def all_processes_needed(accelerator: Accelerator, out: Path) -> Iterator[None]:
    """Turn what the others see when a process of the run dies into one clear error.

    Raises:
        RunError: another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        if accelerator.num_processes == 1 or not any(words in said for words in _GONE):
            raise
        raise RunError(
            f"process {accelerator.process_index} of {accelerator.num_processes} lost another (it died, was killed or "
            f"ran out of memory: look at its own last lines); go on from the newest checkpoint in {out} with --resume"
        ) from error
