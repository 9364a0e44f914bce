"""Dilated causal convolutions over a sequence of vectors. Pure tensors; it knows no item, no mask and no task."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DilatedConvolution(nn.Module):
    """A causal convolution with holes: one linear map of a slot and of those ``dilation, 2 * dilation, ...`` before it.

    What lies before the first slot is zero. The kernel is one matrix of a ``Linear`` (taps oldest first), so that
    whatever tunes matrices tunes it as well, and a step is one product (on a CPU faster than ``conv1d``, which would
    transpose twice).

    Args:
        width: size of a vector in and out.
        kernel_size: how many slots each sees.
        dilation: distance between them.

    **Source:** Yuan et al., A Simple Convolutional Generative Network for Next Item Recommendation, 2019, section 4.2.
    """

    def __init__(self, width: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.kernel_size, self.dilation = kernel_size, dilation
        self.taps = nn.Linear(kernel_size * width, width)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """Return one vector per slot; slot ``t`` depends on slots ``<= t`` alone."""
        length = x.shape[1]
        padded = F.pad(x, (0, 0, (self.kernel_size - 1) * self.dilation, 0))
        starts = [tap * self.dilation for tap in range(self.kernel_size)]
        return self.taps(torch.cat([padded[:, start : start + length] for start in starts], dim=-1))


class DilatedBlock(nn.Module):
    """A residual block of two convolutions, the second with twice the dilation of the first.

    ``a = relu(norm(first(x)))``, ``b = relu(norm(second(a)))``, ``out = x + b``.

    Args:
        width: size of a vector in and out.
        kernel_size: of both convolutions.
        dilation: of the first.
        dropout: share of values of ``b`` that is dropped.

    **Source:** the same, section 4.3, the block of figure 3 (b) as the authors' code for PeterRec has it.
    **Differs:** dropout (theirs has none): small logs are overfitted without.
    """

    def __init__(self, width: int, kernel_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.first = DilatedConvolution(width, kernel_size, dilation)
        self.second = DilatedConvolution(width, kernel_size, 2 * dilation)
        self.first_norm, self.second_norm = nn.LayerNorm(width, eps=1e-8), nn.LayerNorm(width, eps=1e-8)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """Return the block's output."""
        hidden = F.relu(self.first_norm(self.first(x)))
        hidden = F.relu(self.second_norm(self.second(hidden)))
        return x + self.dropout(hidden)
