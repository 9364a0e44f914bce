"""What a backbone is: an embedding, a walk over layers, a norm, and a language-model head.

Tuned, late-interacting, pruned, quantised or early-exiting backbones keep this protocol. This module knows no family.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from m6rec.text.batch import TokenBatch

Family = Literal["encoder", "causal", "seq2seq"]


class Backbone(nn.Module, ABC):
    """A pretrained language model as a walk over its layers.

    ``forward(batch)`` equals ``embed``, then every ``layer``, then ``norm``; and that equals the library's own forward
    under the same mask (tested per family, atol 1e-5).

    Attributes:
        family: which way the model was built to read.
        name: what the user asked for (a shelf name, Hub id or folder).
        hidden_size: width of the hidden states.
        num_layers: depth of the walk.
        max_tokens: longest sequence that the positions allow.
        tokenizer: the Hugging Face tokenizer, with our control tokens added.
        model: the Hugging Face model itself: what PEFT wraps.
    """

    family: Family
    name: str
    hidden_size: int
    num_layers: int
    max_tokens: int
    tokenizer: Any
    model: nn.Module

    @abstractmethod
    def embed(
        self, ids: Int[Tensor, "batch tokens"], positions: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Return the input of the first layer."""

    @abstractmethod
    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index``; ``mask`` is additive (0 or the most negative number)."""

    @abstractmethod
    def norm(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """Apply what stands after the last layer (identity where there is nothing)."""

    @abstractmethod
    def logits(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape vocabulary"]:
        """Apply the language-model head, the control tokens' rows included."""

    @abstractmethod
    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Float[Tensor, "batch tokens hidden"]:
        """Walk over ``layers`` (default: all) under the tree mask of ``batch`` and return the normed states."""
