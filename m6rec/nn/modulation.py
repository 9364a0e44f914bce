"""Hypernetworks, and what their numbers do to states: element-wise modulation, low-rank change. Knows no model."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Op = Literal["max", "min", "mul", "add"]
OPS: tuple[Op, ...] = get_args(Op)


class Hypernetwork(nn.Module):
    """A condition to the numbers that depend on it: a normed condition, one hidden layer, a linear map.

    The last map's weight starts at zero, so that every condition first gives what the bias says: zero, or what the
    caller writes there. (So the layers below it get their first gradient in the second step.)

    Args:
        size: numbers of a condition.
        width: hidden units.
        sizes: how many numbers each part takes.
    """

    def __init__(self, size: int, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.norm, self.inner = nn.LayerNorm(size), nn.Linear(size, width)
        self.outer = nn.Linear(width, sum(sizes))
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, conditions: Float[Tensor, "conditions size"]) -> tuple[Float[Tensor, "conditions _"], ...]:
        """Return each part's numbers, ``[conditions, part]``."""
        units = torch.nn.functional.gelu(self.inner(self.norm(conditions.to(self.inner.weight.dtype))))
        return tuple(self.outer(units).split(self.sizes, dim=-1))


def modulate(
    states: Float[Tensor, "*shape width"],
    op: Op,
    operand: Float[Tensor, "*shape width"],
    strength: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "*shape width"]:
    """Return states after one element-wise operation, or a share of the way there.

    Args:
        states: what is modulated.
        op: ``mul`` multiplies by ``1 + operand``, so that a zero operand changes nothing, as with ``add``.
        operand: made for the row.
        strength: 0 = the states as they are, 1 = the operation's outcome; ``None`` = 1.

    Source: ColdNAS (arXiv 2306.03387), the reduced search space: at most one each of max, min, times, plus.
    Differs: the published code multiplies by ``relu(operand)``, which starts near zero and kills the states.

    >>> modulate(torch.tensor([2.0]), "mul", torch.tensor([0.5])), modulate(torch.tensor([2.0]), "min", torch.ones(1))
    (tensor([3.]), tensor([1.]))
    """
    match op:
        case "mul":
            changed = states * (1 + operand)
        case "add":
            changed = states + operand
        case "max":
            changed = torch.maximum(states, operand)
        case "min":
            changed = torch.minimum(states, operand)
    return changed if strength is None else states + strength * (changed - states)


def low_rank(
    states: Float[Tensor, "batch tokens width"],
    down: Float[Tensor, "batch tokens rank width"],
    up: Float[Tensor, "batch tokens rank width"],
) -> Float[Tensor, "batch tokens width"]:
    """Return what a low-rank map of each token's own adds: ``(x A^T) B / rank``.

    Source: LoRA (arXiv 2106.09685), section 4.1, with factors made for the row.
    """
    inner = torch.einsum("btw,btrw->btr", states, down)
    return torch.einsum("btr,btrw->btw", inner, up) / down.shape[2]
