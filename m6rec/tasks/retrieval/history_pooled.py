"""History granularity "pooled": one vector an event, a small causal transformer over the sequence of vectors.

One pass predicts every next event of a window. Knows no loss and no catalogue file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from m6rec.nn.sequence import SequenceEncoder
from m6rec.tasks.retrieval.windows import NUM_GAPS, Window


@dataclass(frozen=True)
class PooledConfig:
    """Settings of the sequence encoder; all change results."""

    width: int = 128
    """Width inside the transformer."""
    num_layers: int = 2
    """Depth of the transformer."""
    num_heads: int = 4
    """Attention heads."""
    dropout: float = 0.3
    """Dropout inside the transformer."""
    input_dropout: float = 0.3
    """Dropout on event vectors."""
    num_lags: int = 6
    """Last events with a direct transition to the user vector; 0 = none."""


@dataclass(frozen=True)
class PooledBatch:
    """Windows padded on the right; ``[batch, length]`` each.

    Args:
        segments: segment numbers, 0 on padding.
        verbs: verb numbers, 0 = unknown.
        gaps: time-gap buckets, 0 = unknown.
        keep: ``False`` on padding.
        targets: item to predict after each event, -1 for none.
    """

    segments: Int[Tensor, "batch length"]
    verbs: Int[Tensor, "batch length"]
    gaps: Int[Tensor, "batch length"]
    keep: Bool[Tensor, "batch length"]
    targets: Int[Tensor, "batch length"]

    def to(self, device: torch.device | str) -> "PooledBatch":
        """Return the batch on ``device``."""
        return PooledBatch(**{name: value.to(device) for name, value in vars(self).items()})


def collate_windows(windows: Sequence[Window], num_items: int, predict: bool) -> PooledBatch:
    """Pad windows into a batch.

    Args:
        num_items: segments from here on are searches and never targets.
        predict: whether the last event of each window is only a target (training) or also read (inference).
    """
    inputs = [len(window) - 1 if predict else len(window) for window in windows]
    shape = (len(windows), max(inputs, default=0))
    columns = {name: np.zeros(shape, dtype=np.int64) for name in ("segments", "verbs", "gaps")}
    keep = np.zeros(shape, dtype=bool)
    targets = np.full(shape, -1, dtype=np.int64)
    for row, (window, length) in enumerate(zip(windows, inputs, strict=True)):
        for name, column in columns.items():
            column[row, :length] = getattr(window, name)[:length]
        keep[row, :length] = True
        if predict:
            following = window.segments[1:]
            wanted = (following < num_items) & (np.arange(1, len(window)) >= window.first_target)
            targets[row, :length] = np.where(wanted, following, -1)
    return PooledBatch(
        **{name: torch.from_numpy(column) for name, column in columns.items()},
        keep=torch.from_numpy(keep),
        targets=torch.from_numpy(targets),
    )


class PooledHistory(nn.Module):
    """Event vectors to user vectors.

    Args:
        config: sizes and rates.
        dim: width of event and user vectors.
        max_events: longest window.
        num_verbs: verbs of the log, the unknown one not counted.
    """

    def __init__(self, config: PooledConfig, dim: int, max_events: int, num_verbs: int) -> None:
        super().__init__()
        self.encoder = SequenceEncoder(
            dim=dim,
            width=config.width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout=config.dropout,
            input_dropout=config.input_dropout,
            max_events=max_events,
            num_verbs=num_verbs + 1,
            num_gaps=NUM_GAPS,
            num_lags=config.num_lags,
        )

    def forward(
        self, batch: PooledBatch, vectors: Float[Tensor, "columns dim"], places: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length dim"]:
        """Return the user's state after each event.

        Args:
            vectors: one vector a column.
            places: each event's column in ``vectors``.
        """
        states: Tensor = self.encoder(vectors[places], batch.verbs, batch.gaps, batch.keep)
        return states
