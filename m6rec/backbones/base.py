"""What a backbone is: an embedding, a walk over layers, a norm, and a language-model head.

Tuned, late-interacting, pruned, quantised or early-exiting backbones keep this protocol. This module knows no family.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from m6rec.backbones.cache import LayerCache
from m6rec.backbones.sites import Sites
from m6rec.nn.options import Options
from m6rec.text.batch import TokenBatch

Family = Literal["encoder", "causal", "seq2seq", "convolution"]
# States at some points of a batch, and which of the points these are -> their logits.
Head = Callable[[Tensor, Tensor], Tensor]


class Backbone(nn.Module, ABC):
    """A pretrained language model as a walk over its layers.

    ``forward(batch)`` is ``embed``, then every ``layer`` under ``mask``, then ``norm``; and that equals the library's
    own forward under the same mask (tested per family, atol 1e-5).

    Attributes:
        family: which way the model was built to read.
        name: what the user asked for (a shelf name, Hub id or folder).
        hidden_size: width of the hidden states.
        num_layers: depth of the walk.
        max_tokens: longest sequence that the positions allow.
        tokenizer: the Hugging Face tokenizer, with our control tokens added.
        model: the Hugging Face model itself: what PEFT wraps.
        control: ``[4, hidden]`` rows of the control tokens, in the order of ``CONTROL_TOKENS``.
    """

    family: Family
    name: str
    hidden_size: int
    num_layers: int
    max_tokens: int
    tokenizer: Any
    model: nn.Module
    control: nn.Parameter

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the pretrained weights: two backbones agree exactly where it does (caches and run folders ask)."""

    @abstractmethod
    def rows(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
        """Look tokens up, the control tokens' rows included."""

    @abstractmethod
    def enter(
        self, rows: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Turn rows into the input of the first layer (positions, embedding norm, whatever the family has)."""

    def embed(
        self, ids: Int[Tensor, "batch tokens"], positions: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Return the input of the first layer."""
        return self.enter(self.rows(ids), positions)

    def extend(self, batch: TokenBatch) -> TokenBatch:
        """Return ``batch`` with what is read before every text, at the head of the trunk: here, nothing.

        Whoever puts ``n`` tokens there gives them the positions 0 to ``n - 1`` and moves all others by ``n``.
        """
        return batch

    @abstractmethod
    def mask(self, batch: TokenBatch, since: int = 0) -> Float[Tensor, "batch 1 tokens keys"]:
        """Return the additive mask of ``batch``'s tree, in the dtype that attention computes in.

        Its rows are the tokens from the column ``since`` on; what stands before them was read before, and is keys
        alone. ``keys`` are all tokens, except where a family reads its regions apart (T5: source keys, target keys).
        """

    @abstractmethod
    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index``.

        Args:
            index: 0 is the layer next to the embedding.
            hidden: the states so far.
            mask: additive (0 or the most negative number), over the keys in ``cache`` and then the tokens' own.
            positions: as in the batch.
            cache: what this step of the walk has read before; the tokens' keys and values are added to it.
        """

    @abstractmethod
    def norm(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """Apply what stands after the last layer (identity where there is nothing)."""

    @abstractmethod
    def logits(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape vocabulary"]:
        """Apply the language-model head; column ``i`` is the tokenizer's id ``i``, the control tokens stand last."""

    def sites(self) -> Sequence[Sites]:
        """Return where each layer, in the order of the walk, can be added to; none = nothing can be put in."""
        return ()

    def options(self, num_classes: int) -> Options | None:
        """Return the trained answers that a softmax over ``num_classes`` has to take as its weight.

        ``None`` = there are none, and the task brings a head of its own. Ask at every batch: the answers are trained.
        """
        return None

    def classify(
        self, batch: TokenBatch, rows: Int[Tensor, " points"], columns: Int[Tensor, " points"], head: Head
    ) -> Float[Tensor, "points classes"]:
        """Return ``head`` of the states at some points; a backbone that can stop early does so once it is sure.

        Args:
            batch: what to read.
            rows: row of each point.
            columns: token of each point.
            head: states ``[some, hidden]`` and the numbers of their points ``[some]`` -> logits ``[some, classes]``.
        """
        return head(self(batch)[rows, columns], torch.arange(rows.shape[0], device=rows.device))

    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Float[Tensor, "batch tokens hidden"]:
        """Walk over ``layers`` (default: all) under the tree mask of ``batch`` and return the normed states."""
        whole = self.extend(batch)
        mask = self.mask(whole)
        hidden = self.embed(whole.ids, whole.positions)
        for index in range(self.num_layers) if layers is None else layers:
            hidden = self.layer(index, hidden, mask, whole.positions)
        return self.norm(hidden)[:, whole.ids.shape[1] - batch.ids.shape[1] :]


class WrappedBackbone(Backbone):
    """A backbone around another one: everything is the inner one's, until a subclass says otherwise.

    Args:
        inner: the backbone to wrap.
    """

    def __init__(self, inner: Backbone) -> None:
        super().__init__()
        self.inner = inner
        self.training = inner.training

    def around(self, inner: Backbone) -> "WrappedBackbone":
        """Return a view: this wrapper, with all that it holds, around another backbone; it stays as it is itself."""
        view = copy.copy(self)
        view._modules = {**self._modules, "inner": inner}
        return view

    def __getattr__(self, name: str) -> Any:
        """Look in the wrapped backbone for what the wrapper has not got."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":  # not set yet: asking the inner backbone for it would never end
                raise
            return getattr(self.inner, name)

    @property
    def fingerprint(self) -> str:
        """Hash of the pretrained weights."""
        return self.inner.fingerprint

    def rows(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
        """Look tokens up."""
        return self.inner.rows(ids)

    def enter(
        self, rows: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Turn rows into the input of the first layer."""
        return self.inner.enter(rows, positions)

    def extend(self, batch: TokenBatch) -> TokenBatch:
        """Return ``batch`` with what is read before every text."""
        return self.inner.extend(batch)

    def mask(self, batch: TokenBatch, since: int = 0) -> Float[Tensor, "batch 1 tokens keys"]:
        """Return the additive mask of ``batch``'s tree."""
        return self.inner.mask(batch, since)

    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index``."""
        return self.inner.layer(index, hidden, mask, positions, cache)

    def norm(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """Apply what stands after the last layer."""
        return self.inner.norm(hidden)

    def logits(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape vocabulary"]:
        """Apply the language-model head."""
        return self.inner.logits(hidden)

    def sites(self) -> Sequence[Sites]:
        """Return where each layer can be added to."""
        return self.inner.sites()

    def options(self, num_classes: int) -> Options | None:
        """Return the trained answers that a softmax over ``num_classes`` has to take as its weight."""
        return self.inner.options(num_classes)
