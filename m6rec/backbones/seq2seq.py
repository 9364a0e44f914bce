"""T5: the source through the encoder, the targets through the decoder. This module knows no checkpoint."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from m6rec.backbones.anatomy import decoder_parts, part, position_bias
from m6rec.backbones.pretrained import PretrainedBackbone
from m6rec.errors import BackboneError
from m6rec.nn.masks import additive, tree_mask
from m6rec.text.batch import TokenBatch


class Seq2SeqBackbone(PretrainedBackbone):
    """An encoder-decoder (T5) as one walk over one sequence of states.

    The trunk is the source region and the branches are the target regions. The first layers of the walk are the
    encoder's and change only the trunk's states; the rest are the decoder's and change only the branches', which see
    their own branch by self-attention and what the tree lets them see of the trunk by cross-attention. So one tensor
    holds both regions, a user text alone runs the encoder alone, and a branch without a trunk decodes from nothing
    (its cross-attention adds nothing). Positions count where T5 has them: inside a region, as distances.

    The mask therefore has two halves of keys: the source's, then the target's. A token that sees itself in the first
    half is source, in the second target, in none padding. Each stack's final norm belongs to its last layer, for the
    two regions have different ones; ``norm`` is the identity.

    Source: Raffel et al., T5 (arXiv 1910.10683).
    """

    family = "seq2seq"
    causal = False

    def mask(self, batch: TokenBatch) -> Float[Tensor, "batch 1 tokens keys"]:
        """Return the additive mask: ``[batch, 1, tokens, 2 * tokens]``, source keys before target keys."""
        visible = tree_mask(batch.keep, batch.blocks, batch.branches, causal=False)
        in_trunk = (batch.branches == 0).unsqueeze(1)
        halves = torch.cat([visible & in_trunk, visible & ~in_trunk], dim=-1)
        return additive(halves.unsqueeze(1), self._attention_dtype)

    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: Any = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index``: of the encoder to the source, or of the decoder to the targets."""
        if cache is not None:
            raise BackboneError("got a cache for a T5 layer, expected none; the encoder's states have no past")
        source_mask, target_mask = mask.chunk(2, dim=-1)
        encoder, decoder = (part(self.model, path) for path in self.anatomy.layers)
        if index < len(encoder):
            return self._encode(encoder, index, hidden, source_mask, positions)
        return self._decode(decoder, index - len(encoder), hidden, source_mask, target_mask, positions)

    def _encode(
        self,
        stack: nn.ModuleList,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens tokens"],
        positions: Int[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch tokens hidden"]:
        is_source = _sees_itself(mask)
        end = int(is_source.sum(1).max())  # the trunk stands first: beyond this column there is no source
        if end == 0:
            return hidden
        states = stack[index](
            hidden[:, :end],
            attention_mask=mask[..., :end, :end],
            position_bias=position_bias(stack, positions[:, :end], bidirectional=True),
        )[0]
        if index == len(stack) - 1:
            states = self._finish(0, states)
        return torch.cat([torch.where(is_source[:, :end, None], states, hidden[:, :end]), hidden[:, end:]], dim=1)

    def _decode(
        self,
        stack: nn.ModuleList,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        source_mask: Float[Tensor, "batch 1 tokens tokens"],
        target_mask: Float[Tensor, "batch 1 tokens tokens"],
        positions: Int[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch tokens hidden"]:
        is_source, is_target = _sees_itself(source_mask), _sees_itself(target_mask)
        start, end = int(is_source.sum(1).min()), int(is_source.sum(1).max())
        if not bool(is_target.any()):
            return hidden
        attend, cross, feed = decoder_parts(stack[index])
        bias = position_bias(stack, positions[:, start:], bidirectional=False)
        states = attend(hidden[:, start:], attention_mask=target_mask[..., start:, start:], position_bias=bias)[0]
        if end > 0:
            cross_mask = source_mask[..., start:, :end]
            crossed = cross(states, hidden[:, :end], attention_mask=cross_mask)[0]
            states = torch.where((cross_mask == 0).any(-1).squeeze(1).unsqueeze(-1), crossed, states)
        states = feed(states)
        if index == len(stack) - 1:
            states = self._finish(1, states)
        states = torch.where(is_target[:, start:, None], states, hidden[:, start:])
        return torch.cat([hidden[:, :start], states], dim=1)

    def _finish(self, stack: int, states: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """Apply a stack's final norm, and the dropout that T5 has behind it."""
        path = str(self.anatomy.norms[stack])
        return part(self.model, path.rpartition(".")[0]).dropout(part(self.model, path)(states))

    def norm(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """Return the states as they are: each region's last layer has normed it."""
        return hidden


def _sees_itself(mask: Float[Tensor, "batch 1 tokens tokens"]) -> Bool[Tensor, "batch tokens"]:
    return mask.squeeze(1).diagonal(dim1=-2, dim2=-1) == 0
