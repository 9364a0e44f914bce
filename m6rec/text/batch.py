"""Token ids with the tree they stand in: what text hands to a backbone. It knows no model."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Token ids and the tree they stand in, padded on the right.

    Args:
        ids: ``[batch, tokens]`` int64 token ids.
        keep: ``[batch, tokens]`` bool, ``False`` on padding.
        positions: ``[batch, tokens]`` int64; a branch restarts after the trunk position it hangs on.
        blocks: ``[batch, tokens]`` int64 time of each token: a token sees trunk tokens of blocks up to its own.
        branches: ``[batch, tokens]`` int64: 0 = trunk, 1.. = branch number; a branch is causal and sees no sibling.
        segments: ``[batch, tokens]`` int64 index of the segment in its layout.
    """

    ids: Int[Tensor, "batch tokens"]
    keep: Bool[Tensor, "batch tokens"]
    positions: Int[Tensor, "batch tokens"]
    blocks: Int[Tensor, "batch tokens"]
    branches: Int[Tensor, "batch tokens"]
    segments: Int[Tensor, "batch tokens"] | None = None

    def to(self, device: torch.device | str) -> "TokenBatch":
        """Return the batch on ``device``."""
        return TokenBatch(**{name: None if value is None else value.to(device) for name, value in vars(self).items()})

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.ids.shape[0])
