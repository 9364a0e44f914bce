"""What the families share: a Hugging Face model, its tokenizer, the control tokens' rows, and the fingerprint.

This module knows no mask and no way to call a layer; the family files do.
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from m6rec.backbones.anatomy import Anatomy, anatomy_of, logit_scale, part
from m6rec.backbones.base import Backbone
from m6rec.backbones.cache import LayerCache
from m6rec.backbones.sites import Sites
from m6rec.errors import BackboneError
from m6rec.nn.digest import digest_of
from m6rec.nn.masks import additive, tree_mask
from m6rec.text.batch import TokenBatch
from m6rec.text.segments import CONTROL_TOKENS

# Where each control token's row is copied from: the first special token of the model's own that exists.
_CONTROL_SOURCES = (("cls", "bos"), ("sep", "eos"), ("cls", "bos", "pad"), ("sep", "eos"))


class PretrainedBackbone(Backbone):
    """A Hugging Face model with our control tokens: base of the families that are one stack of layers.

    The control tokens take the ids from ``len(tokenizer)`` up, and their rows live here, not in the model's own
    tables, which stay as they were. Padding rows that a model's table has beyond its tokenizer are never looked up and
    have no logits.

    Args:
        model: the Hugging Face model, of the class that its anatomy names.
        tokenizer: its tokenizer; the control tokens are added to it.
        name: what the user asked for.

    Attributes:
        causal: whether the trunk is read only forward.
    """

    causal: bool

    def __init__(self, model: nn.Module, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model.requires_grad_(False), tokenizer, name
        self.anatomy: Anatomy = anatomy_of(model.config)
        self.hidden_size = int(self._tokens.weight.shape[1])
        self.num_layers = sum(len(part(model, path)) for path in self.anatomy.layers)
        limit = self.anatomy.max_tokens
        self.max_tokens = limit if isinstance(limit, int) else int(getattr(model.config, limit))
        own = CONTROL_TOKENS[0] in tokenizer.get_added_vocab()  # pretrained with them: its table holds their rows
        self.first_control = _add_control_tokens(tokenizer, self._tokens.num_embeddings)
        rows = _own_rows(self._tokens.weight, self.first_control) if own else None
        rows = _control_rows(self._tokens.weight, tokenizer) if rows is None else rows
        self.control = nn.Parameter(rows, requires_grad=False)
        self.eval()

    @property
    def _tokens(self) -> Any:  # an nn.Embedding, or what looks tokens up like one
        return part(self.model, self.anatomy.tokens)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pretrained weights, taken when first asked for: ask before training them."""
        return digest_of(self.model.named_parameters())

    def rows(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
        """Look tokens up, the control tokens' rows included."""
        is_control = ids >= self.first_control
        words = self._tokens(ids.masked_fill(is_control, 0))
        control = F.embedding((ids - self.first_control).clamp(min=0), self.control)
        return torch.where(is_control.unsqueeze(-1), control.to(words.dtype), words)

    def enter(
        self, rows: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Turn rows into the input of the first layer."""
        return self.anatomy.enter(self.model, rows, positions)

    def mask(self, batch: TokenBatch, since: int = 0) -> Float[Tensor, "batch 1 tokens keys"]:
        """Return the additive mask of ``batch``'s tree, for the tokens from the column ``since`` on."""
        visible = tree_mask(batch.keep, batch.blocks, batch.branches, self.causal, since)
        return additive(visible.unsqueeze(1), self._attention_dtype)

    @property
    def _attention_dtype(self) -> torch.dtype:
        kind = self.control.device.type
        # Under autocast queries come out in its dtype, and attention wants the mask in the same one.
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return next(self.model.parameters()).dtype

    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index``."""
        turned: dict[str, Any] = {}
        if self.anatomy.rotary is not None:
            turned["position_embeddings"] = part(self.model, self.anatomy.rotary)(hidden, positions)
        layer = part(self.model, self.anatomy.layers[0])[index]
        return layer(hidden, attention_mask=mask, past_key_values=cache, **turned)

    def norm(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """Apply what stands after the last layer."""
        path = self.anatomy.norms[0]
        return hidden if path is None else part(self.model, path)(hidden)

    def logits(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape vocabulary"]:
        """Apply the language-model head (tied to the embedding where the family has none)."""
        hidden = hidden * logit_scale(self.model.config)
        if self.anatomy.head is None:
            words = F.linear(hidden, self._tokens.weight[: self.first_control])
        else:
            words = part(self.model, self.anatomy.head)(hidden)[..., : self.first_control]
        return torch.cat([words, F.linear(hidden, self.control.to(hidden.dtype))], dim=-1)

    def sites(self) -> list[Sites]:
        """Return where each layer can be added to, stack after stack."""
        return [
            sites.under(f"{stack}.{index}")
            for stack, sites in zip(self.anatomy.layers, self.anatomy.sites, strict=True)
            for index in range(len(part(self.model, stack)))
        ]


def _add_control_tokens(tokenizer: Any, num_rows: int) -> int:
    """Add the control tokens to a tokenizer and return the first one's id."""
    tokenizer.add_tokens(list(CONTROL_TOKENS), special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))
    first = len(tokenizer) - len(CONTROL_TOKENS)
    if ids != list(range(first, len(tokenizer))):
        raise BackboneError(
            f"got a tokenizer whose control tokens have the ids {ids}, expected its last {len(ids)}; "
            "load the model with the tokenizer it was published with"
        )
    if first > num_rows:
        raise BackboneError(
            f"got a tokenizer with {first} tokens for a model with {num_rows} rows; load the two from one checkpoint"
        )
    return first


def _own_rows(table: Float[Tensor, "vocabulary hidden"], first: int) -> Float[Tensor, "4 hidden"] | None:
    """Return the control tokens' rows of a checkpoint that was written with them, if its table reaches that far."""
    rows = table.detach()[first : first + len(CONTROL_TOKENS)].float().clone()
    return rows if len(rows) == len(CONTROL_TOKENS) else None


def _control_rows(table: Float[Tensor, "vocabulary hidden"], tokenizer: Any) -> Float[Tensor, "4 hidden"]:
    """Copy the rows of the model's own begin and end tokens; where it has none, the mean of the table.

    In float32, whatever the model is stored in: they are trained, and bfloat16 would swallow small steps.
    """
    table = table.detach()
    rows = []
    for sources in _CONTROL_SOURCES:
        ids = [getattr(tokenizer, f"{source}_token_id") for source in sources]
        known = [i for i in ids if i is not None]
        rows.append(table[known[0]] if known else table.mean(0))
    return torch.stack(rows).float()
