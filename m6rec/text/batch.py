"""Token ids with the tree they stand in: what text hands to a backbone. It knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from m6rec.text.tokenize import TokenizedLayout


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
        conditions: ``[batch, regions]`` int64 number of the condition that a row's trunk and branches are read under,
            where a backbone is given some (:mod:`m6rec.backbones.conditions`); it goes wherever its row goes.
    """

    ids: Int[Tensor, "batch tokens"]
    keep: Bool[Tensor, "batch tokens"]
    positions: Int[Tensor, "batch tokens"]
    blocks: Int[Tensor, "batch tokens"]
    branches: Int[Tensor, "batch tokens"]
    segments: Int[Tensor, "batch tokens"] | None = None
    conditions: Int[Tensor, "batch regions"] | None = None

    def to(self, device: torch.device | str) -> "TokenBatch":
        """Return the batch on ``device``."""
        columns: dict[str, Any] = {
            name: value if value is None else value.to(device) for name, value in vars(self).items()
        }
        return TokenBatch(**columns)

    def take(self, rows: Int[Tensor, " rows"]) -> "TokenBatch":
        """Return some rows, in the order of ``rows``."""
        columns: dict[str, Any] = {name: value if value is None else value[rows] for name, value in vars(self).items()}
        return TokenBatch(**columns)

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.ids.shape[0])


def collate(layouts: Sequence[TokenizedLayout], pad_id: int) -> TokenBatch:
    """Return layouts as one batch, padded on the right.

    Args:
        layouts: ``batch`` tokenised layouts; an empty one becomes a row of padding.
        pad_id: token id of padding (``TextTokenizer.pad_id``). Padding has position, block, branch and segment 0, and
            is hidden by ``keep``.
    """
    tokens = max((len(layout) for layout in layouts), default=0)

    def padded(name: str, fill: int) -> Tensor:
        column = torch.full((len(layouts), tokens), fill, dtype=torch.int64)
        for row, layout in enumerate(layouts):
            column[row, : len(layout)] = torch.from_numpy(getattr(layout, name))
        return column

    lengths = torch.tensor([len(layout) for layout in layouts], dtype=torch.int64)
    return TokenBatch(
        ids=padded("ids", pad_id),
        keep=torch.arange(tokens) < lengths[:, None],
        positions=padded("positions", 0),
        blocks=padded("blocks", 0),
        branches=padded("branches", 0),
        segments=padded("segments", 0),
    )


def branch_ends(tokens: TokenBatch) -> tuple[Int[Tensor, " branches"], Int[Tensor, " branches"]]:
    """Return row and column of every branch's last token, row by row and branch by branch: where it is read."""
    following = torch.cat([tokens.branches[:, 1:], torch.full_like(tokens.branches[:, :1], -1)], dim=1)
    rows, columns = ((tokens.branches > 0) & tokens.keep & (following != tokens.branches)).nonzero(as_tuple=True)
    return rows, columns
