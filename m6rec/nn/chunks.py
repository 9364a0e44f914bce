"""Large batches on small memory: read a batch chunk by chunk, and again on the way back. Knows no model and no loss."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")
R = TypeVar("R")


def in_chunks(read: Callable[[T], R], chunks: Sequence[T]) -> list[R]:
    """Return ``[read(chunk) for chunk in chunks]``, holding the activations of one chunk at a time.

    The first pass keeps only what ``read`` returns, so that a contrastive loss can compare the rows of all chunks; the
    backward pass reads each chunk a second time, with the same random numbers, and goes on into it. Loss and gradients
    are those of the whole batch at once.

    Args:
        read: chunk -> tensors, perhaps nested; must give the same twice.
        chunks: a single one is read once, the plain way.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (2101.06983).
    Differs: torch's activation checkpointing is the second pass, where the paper keeps the gradients of the rows
        itself; the numbers are the same, and data-parallel hooks see one ordinary backward pass.
    """
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return [read(chunk) for chunk in chunks]
    return [checkpoint(read, chunk, use_reentrant=False) for chunk in chunks]
