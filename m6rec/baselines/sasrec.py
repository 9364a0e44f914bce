"""SASRec: self-attention over item ids. It knows no text, no time and no user id."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from m6rec.baselines.next_item import ItemNetwork, NextItemBaseline, NextItemConfig
from m6rec.nn.transformer import CausalTransformer


@dataclass(frozen=True)
class SASRecConfig(NextItemConfig):
    """Settings of :class:`SASRec`; all change results unless said otherwise."""

    width: int = 128
    """Size of item and state vectors."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 2
    """Attention heads per block."""
    dropout: float = 0.4
    """Share of values dropped after the embedding and inside the blocks."""
    positions: Literal["relative", "absolute"] = "absolute"
    """Learnt position vectors as in the paper, or a learnt bias per distance (equal within noise on Amazon Beauty)."""


class SASRec(NextItemBaseline):
    """Self-attentive sequential recommendation on item ids, next item at every position.

    **Source:** Kang and McAuley, Self-attentive sequential recommendation, 2018.
    **Differs:** cross entropy over the whole catalogue instead of one sampled negative (worth a factor of 1.5 to 2:
    Klenitskiy and Vasilev, Turning dross into gold loss, 2023); pre-norm blocks with GELU; long histories are cut into
    windows instead of losing their beginning; trained until validation NDCG@10 stops rising. A user without history
    gets the popular items.
    """

    name = "sasrec"
    Config = SASRecConfig
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "width": (64, 128),
        "num_layers": (1, 2),
        "dropout": (0.2, 0.3, 0.4, 0.5),
        "learning_rate": (1e-3, 2e-3, 4e-3),
        "positions": ("absolute", "relative"),
        "weight_decay": (0.0, 0.1),
    }

    def build(self, num_items: int) -> ItemNetwork:
        """Return a new network."""
        return SASRecNetwork(num_items, self.config)


class SASRecNetwork(ItemNetwork):
    """Item embedding and causal transformer; states live in the space of the item vectors.

    Args:
        num_items: size of the catalogue.
        config: see :class:`SASRecConfig`.
    """

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items, config.width)
        nn.init.normal_(self.items.weight, std=0.02)
        self.norm, self.dropout = nn.LayerNorm(config.width), nn.Dropout(config.dropout)
        self.encoder = CausalTransformer(
            config.width, config.num_layers, config.num_heads, config.dropout, config.max_length, config.positions
        )

    def forward(self, items: Tensor) -> Tensor:
        """Return ``[batch, length, width]`` states of ``items`` (``[batch, length]`` ids, ``-1`` = padding)."""
        vectors = self.norm(self.items(items.clamp(min=0)))
        return torch.as_tensor(self.encoder(self.dropout(vectors), items >= 0))

    def table(self) -> Tensor:
        """Return the item vectors."""
        return self.items.weight
