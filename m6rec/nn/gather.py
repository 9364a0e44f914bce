"""Rows of all processes as one table, with gradients: the negatives of one process are negatives of every other.

Plain tensors; knows no item, no loss and no accelerate. With one process, or none set up, everything is the identity.
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch import distributed as dist


def num_processes() -> int:
    """Return how many processes share their rows; 1 where no process group is set up."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Shaped[Tensor, "rows *shape"]) -> Shaped[Tensor, "all_rows *shape"]:
    """Return every process's rows, in the order of the processes; each may hold another number of them.

    The backward pass sums over processes what each of them wants of a row. If every process back-propagates the sum
    (not the mean) over its own positions, and gradients of parameters are summed over processes, they are those of one
    process that held all rows.

    Args:
        rows: this process's.

    Source: RocketQA (2010.08191), section 3.2 (cross-batch negatives).
    Differs: rows are padded to the longest process's, so that batches need not be of one size.
    """
    if num_processes() == 1:
        return rows
    if not rows.is_floating_point():
        return _all_rows(rows)[0]
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def gather_columns(
    columns: Int[Tensor, " columns"], vectors: Float[Tensor, "columns dim"]
) -> tuple[Int[Tensor, " all_columns"], Float[Tensor, "all_columns dim"]]:
    """Return the columns of all processes, each once and sorted, with their vectors.

    Numbers and vectors travel apart and a position finds its target by the item's number, never by a place that is
    computed from ranks: a table of positives and negatives that travels whole has misaligned labels before.

    Args:
        columns: distinct item numbers, ascending.
        vectors: of each; two processes that hold one item must hold the same vector of it, dropout aside, and the first
            process's is taken.
    """
    if num_processes() == 1:
        return columns, vectors
    everyone, rows = gather_rows(columns), gather_rows(vectors)
    order = everyone.argsort(stable=True)
    ordered = everyone[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first], rows[order[first]]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everyone, sizes = _all_rows(rows)
        start = sum(sizes[: dist.get_rank()])
        ctx.own = slice(start, start + len(rows))
        return everyone

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        # gloo has no reduce-scatter: everybody sums everything and keeps its own part.
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total[ctx.own]


def _all_rows(rows: Tensor) -> tuple[Tensor, list[int]]:
    """Return every process's rows, and how many each has."""
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(own) for _ in range(num_processes())]
    dist.all_gather(counts, own)
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sizes
