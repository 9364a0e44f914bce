"""NextItNet: dilated convolutions over item ids. It knows no text, no time and no user id."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.backbones.items import item_batch
from m6rec.backbones.nextitnet import NextItNetBackbone
from m6rec.baselines.next_item import ItemNetwork, NextItemBaseline, NextItemConfig


@dataclass(frozen=True)
class NextItNetConfig(NextItemConfig):
    """Settings of :class:`NextItNet`; all change results unless said otherwise."""

    width: int = 128
    """Size of item and state vectors."""
    dilations: tuple[int, ...] = (1, 4)
    """Of each block's first convolution; the second has twice of it. (1, 4) four times is the paper's."""
    dropout: float = 0.4
    """Share of values dropped after the embedding and from each block's change."""


class NextItNet(NextItemBaseline):
    """Dilated causal convolutions on item ids, next item at every position: what PeterRec pretrains.

    **Source:** Yuan et al., A Simple Convolutional Generative Network for Next Item Recommendation, 2019; pretraining
    and residual block of PeterRec (arXiv 2001.04253).
    **Differs:** the softmax is tied to the item table; dropout; trained until validation NDCG@10 stops rising. A user
    without history gets the popular items.
    """

    name = "nextitnet"
    Config = NextItNetConfig
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "width": (64, 128),
        "dilations": ((1,), (1, 4), (1, 4, 1, 4)),
        "dropout": (0.2, 0.3, 0.4, 0.5),
        "learning_rate": (1e-3, 2e-3, 4e-3),
        "weight_decay": (0.0, 0.1),
    }

    def build(self, num_items: int) -> ItemNetwork:
        """Return a new network."""
        config = self.config
        backbone = NextItNetBackbone.new(
            num_items, hidden_size=config.width, dilations=config.dilations, dropout=config.dropout
        )
        return BackboneNetwork(backbone, num_items)


class BackboneNetwork(ItemNetwork):
    """A backbone over item ids, all of it trained; states live in the space of the item vectors.

    Args:
        backbone: whose first tokens are the items.
        num_items: size of the catalogue.
    """

    def __init__(self, backbone: Backbone, num_items: int) -> None:
        super().__init__()
        self.backbone, self.num_items = backbone, num_items
        backbone.model.requires_grad_(True)

    def forward(self, items: Tensor) -> Tensor:
        """Return ``[batch, length, width]`` states of ``items`` (``[batch, length]`` ids, ``-1`` = padding)."""
        return self.backbone(item_batch(items))

    def table(self) -> Tensor:
        """Return the item vectors."""
        items = torch.arange(self.num_items, device=self.backbone.control.device)
        return self.backbone.rows(items.unsqueeze(0)).squeeze(0)
