"""Virtual tokens: trained rows before the text, or trained keys and values before every layer's own.

This module knows neither PEFT's configs nor its files; it is handed the modules that PEFT has made.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from m6rec.backbones.base import Backbone, WrappedBackbone
from m6rec.backbones.cache import LayerCache
from m6rec.errors import TunerError
from m6rec.text.batch import TokenBatch


class PromptedBackbone(WrappedBackbone):
    """A backbone that reads ``num_tokens`` trained rows before every text.

    The rows are tokens of their own, with the ids behind the tokenizer's last, so that the walk needs nothing new:
    ``extend`` puts them at the head of the trunk, in block 0 (every token sees them; in a bidirectional family they
    see the first block), at positions 0, 1, ..., and moves all other positions behind them, as PEFT does. They are
    segment 0.

    Args:
        inner: the frozen backbone.
        prompt_encoder: ``[num_tokens]`` indices -> ``[num_tokens, hidden]`` rows.
        num_tokens: how many rows.
    """

    def __init__(self, inner: Backbone, prompt_encoder: nn.Module, num_tokens: int) -> None:
        super().__init__(inner)
        self.prompt_encoder, self.num_tokens = prompt_encoder, num_tokens
        self.max_tokens = _room(inner, num_tokens)
        self.first_virtual = len(inner.tokenizer)

    def prompt(self) -> Float[Tensor, "virtual hidden"]:
        """Return the trained rows."""
        return self.prompt_encoder(torch.arange(self.num_tokens, device=self.control.device))

    def rows(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
        """Look tokens up, the virtual ones included."""
        is_virtual = ids >= self.first_virtual
        words = self.inner.rows(ids.masked_fill(is_virtual, 0))
        virtual = F.embedding((ids - self.first_virtual).clamp(min=0), self.prompt()).to(words.dtype)
        return torch.where(is_virtual.unsqueeze(-1), virtual, words)

    def extend(self, batch: TokenBatch) -> TokenBatch:
        """Return ``batch`` with the virtual tokens at the head of every trunk."""
        order = torch.arange(self.num_tokens, device=batch.ids.device).expand(batch.size, -1)
        zero = torch.zeros_like(order)
        return TokenBatch(
            ids=torch.cat([order + self.first_virtual, batch.ids], dim=1),
            keep=torch.cat([zero == 0, batch.keep], dim=1),
            positions=torch.cat([order, batch.positions + self.num_tokens], dim=1),
            blocks=torch.cat([zero, batch.blocks], dim=1),
            branches=torch.cat([zero, batch.branches], dim=1),
            segments=None if batch.segments is None else torch.cat([zero, batch.segments + 1], dim=1),
        )


class PrefixedBackbone(WrappedBackbone):
    """A backbone whose every layer finds ``num_tokens`` trained keys and values before its own.

    The prefix is visible to all, and the positions of the text stand behind it, as PEFT has them; ``embed`` and
    ``layer`` take the batch's own positions and move them.

    Args:
        inner: the frozen backbone.
        prompt_encoder: ``[num_tokens]`` indices -> ``[num_tokens, num_layers * 2 * heads * head width]``.
        num_tokens: how many keys a layer.
        num_heads: number of key-value heads.
    """

    def __init__(self, inner: Backbone, prompt_encoder: nn.Module, num_tokens: int, num_heads: int) -> None:
        super().__init__(inner)
        self.prompt_encoder, self.num_tokens, self.num_heads = prompt_encoder, num_tokens, num_heads
        self.max_tokens = _room(inner, num_tokens)

    def prefix(self) -> Float[Tensor, "layers two heads virtual width"]:
        """Return the trained keys and values of all layers."""
        flat = self.prompt_encoder(torch.arange(self.num_tokens, device=self.control.device))
        return flat.view(self.num_tokens, self.num_layers, 2, self.num_heads, -1).permute(1, 2, 3, 0, 4)

    def enter(
        self, rows: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Turn rows into the input of the first layer."""
        return self.inner.enter(rows, positions + self.num_tokens)

    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index`` with its prefix in sight."""
        cache = LayerCache() if cache is None else cache
        if not cache.get_seq_length():  # nothing was read before: the prefix goes in, once
            cache.update(*self.prefix()[index].to(mask.dtype).unsqueeze(1).expand(-1, len(hidden), -1, -1, -1))
        mask = F.pad(mask, (self.num_tokens, 0))  # 0 = visible
        return self.inner.layer(index, hidden, mask, positions + self.num_tokens, cache)


def _room(inner: Backbone, num_tokens: int) -> int:
    """Return how many tokens of a text fit behind the virtual ones."""
    if not 0 < num_tokens < inner.max_tokens:
        raise TunerError(
            f"num_virtual_tokens: got {num_tokens}, expected 1 to {inner.max_tokens - 1}, for {inner.name} reads "
            f"{inner.max_tokens} tokens; set another number"
        )
    return inner.max_tokens - num_tokens
