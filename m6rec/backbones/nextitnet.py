"""NextItNet: dilated causal convolutions over items, in the shape of a Hugging Face model and of our walk.

This module knows no tuner, no catalogue and no training.
"""

from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from m6rec.backbones.anatomy import part
from m6rec.backbones.cache import LayerCache
from m6rec.backbones.items import item_tokenizer
from m6rec.backbones.pretrained import PretrainedBackbone
from m6rec.errors import BackboneError
from m6rec.nn.convolution import DilatedBlock


@no_type_check  # jaxtyping, in the tests, would lose the library's way of taking any further field
class NextItNetConfig(PreTrainedConfig):
    """Sizes of :class:`NextItNetModel`, as its ``config.json`` keeps them; all change results."""

    model_type = "nextitnet"

    vocab_size: int = 1
    """Rows of the item table: the items, and one for whatever is no known item."""
    hidden_size: int = 64
    """Size of the states."""
    kernel_size: int = 3
    """How many slots a convolution sees."""
    dilations: list[int] | tuple[int, ...] = (1, 4, 1, 4, 1, 4, 1, 4)
    """Of each block's first convolution; the second has twice of it. The default gives the paper's 1, 2, 4, 8 four
    times."""
    dropout: float = 0.0
    """Share of values dropped from item vectors and from each block's change."""
    vector_size: int | None = None
    """Size of given, frozen item vectors; null = each item has a trained row."""

    @property
    def receptive_field(self) -> int:
        """How many slots a state depends on, its own included."""
        return 1 + 3 * (self.kernel_size - 1) * sum(self.dilations)


class ItemVectors(nn.Module):
    """Frozen vectors of items (of their texts, say) behind a trained projection: an embedding table in all but name.

    Args:
        num_items: rows.
        size: of the frozen vectors.
        width: of what is looked up.
    """

    def __init__(self, num_items: int, size: int, width: int) -> None:
        super().__init__()
        self.frozen = nn.Embedding(num_items, size).requires_grad_(False)
        self.project = nn.Linear(size, width)
        self.num_embeddings = num_items

    @property
    def weight(self) -> Float[Tensor, "items width"]:
        """Every item's row."""
        return self.project(self.frozen.weight)

    def forward(self, items: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        """Look items up."""
        return self.project(self.frozen(items))


class NextItNetModel(PreTrainedModel):
    """Item table and residual blocks, with the library's ways of saving and loading.

    Args:
        config: its sizes.
    """

    config_class = NextItNetConfig
    _input_embed_layer = "items"

    def __init__(self, config: NextItNetConfig) -> None:
        super().__init__(config)
        width, size = config.hidden_size, config.vector_size
        self.items = (
            nn.Embedding(config.vocab_size, width) if size is None else ItemVectors(config.vocab_size, size, width)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            DilatedBlock(width, config.kernel_size, dilation, config.dropout) for dilation in config.dilations
        )
        self.post_init()

    def forward(self, input_ids: Int[Tensor, "batch tokens"]) -> BaseModelOutput:
        """Return the states of item sequences that are padded on the right."""
        hidden = self.dropout(self.items(input_ids))
        for block in self.blocks:
            hidden = block(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


AutoConfig.register(NextItNetConfig.model_type, NextItNetConfig)
AutoModel.register(NextItNetConfig, NextItNetModel)


class NextItNetBackbone(PretrainedBackbone):
    """NextItNet over item ids or frozen item vectors: a walk over residual blocks of dilated convolutions.

    A convolution reaches over neighbouring columns and asks no mask, so a batch must be plain sequences: each row one
    trunk, or a trunk and one branch behind its end, padded on the right. Trees with more are refused. The states have
    no positions; ``max_tokens`` is the receptive field, for what lies further back is never read. The head is tied to
    the item table.

    Source: Yuan et al., A Simple Convolutional Generative Network for Next Item Recommendation, 2019; the form that
    PeterRec (arXiv 2001.04253) pretrains: kernel 3, dilations 1, 2, 4, 8 repeated.
    Differs: the head is tied (theirs is a second table), weights start normal instead of truncated normal.
    """

    family = "convolution"
    causal = True

    @classmethod
    def new(
        cls,
        num_items: int,
        vectors: Float[Tensor, "items size"] | None = None,
        name: str = "nextitnet",
        **sizes: Any,
    ) -> "NextItNetBackbone":
        """Return an untrained backbone over a catalogue.

        Args:
            num_items: its size.
            vectors: given vectors of the items, which stay frozen (an unknown item has their mean); ``None`` = each
                item has a trained row.
            name: what to call it.
            sizes: fields of :class:`NextItNetConfig`.
        """
        size = None if vectors is None else int(vectors.shape[1])
        model = NextItNetModel(NextItNetConfig(vocab_size=num_items + 1, vector_size=size, **sizes))
        if vectors is not None:
            with torch.no_grad():
                part(model, "items.frozen").weight.copy_(torch.cat([vectors, vectors.mean(0, keepdim=True)]))
        return cls(model, item_tokenizer(num_items), name)

    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply block ``index``.

        Raises:
            BackboneError: the mask hides from a token what the convolution would show it, or there is a cache.
        """
        if cache is not None:
            raise BackboneError(
                "got a cache for a convolution, expected none, for it has no keys and values to read on from; "
                "read every sequence whole"
            )
        _check_plain(mask)
        return part(self.model, "blocks")[index](hidden)


def _check_plain(mask: Float[Tensor, "batch 1 tokens keys"]) -> None:
    """Refuse every mask but that of plain sequences: a convolution would not heed it."""
    visible = mask.squeeze(1) == 0
    keep = visible.diagonal(dim1=1, dim2=2)
    wanted = torch.ones_like(visible).tril() & keep[:, None, :]
    gaps = keep[:, 1:] & ~keep[:, :-1]
    if bool(((visible != wanted) & keep[:, :, None]).any() | gaps.any()):
        raise BackboneError(
            "got a tree with branches (or padding on the left) for a convolution, expected one plain sequence a row; "
            "give one row a branch, padded on the right"
        )
