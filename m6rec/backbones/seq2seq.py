"""T5: the source through the encoder, the targets through the decoder. This module knows no checkpoint."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from m6rec.backbones.anatomy import decoder_parts, part, position_bias, source_keys
from m6rec.backbones.cache import Kept, LayerCache, WholeCache
from m6rec.backbones.pretrained import PretrainedBackbone
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

    To read on, a decoder layer keeps the keys and values of its targets, and what its cross-attention has made of the
    source, which is read whole, and once.

    Source: Raffel et al., T5 (arXiv 1910.10683).
    """

    family = "seq2seq"
    causal = False

    def mask(self, batch: TokenBatch, since: int = 0) -> Float[Tensor, "batch 1 tokens keys"]:
        """Return the additive mask: ``[batch, 1, tokens, 2 * all]``, source keys before target keys."""
        visible = tree_mask(batch.keep, batch.blocks, batch.branches, causal=False, since=since)
        in_trunk = (batch.branches == 0).unsqueeze(1)
        halves = torch.cat([visible & in_trunk, visible & ~in_trunk], dim=-1)
        return additive(halves.unsqueeze(1), self._attention_dtype)

    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index``: of the encoder to the source, or of the decoder to the targets."""
        source_mask, target_mask = mask.chunk(2, dim=-1)
        encoder, decoder = (part(self.model, path) for path in self.anatomy.layers)
        if index < len(encoder):
            return self._encode(encoder, index, hidden, source_mask, positions)
        return self._decode(decoder, index - len(encoder), hidden, source_mask, target_mask, positions, cache)

    def _encode(
        self,
        stack: nn.ModuleList,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens all"],
        positions: Int[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch tokens hidden"]:
        is_source = _sees_itself(mask)
        end = int(is_source.sum(1).max())  # the trunk stands first: beyond this column there is no source
        if end == 0:
            return hidden
        states = stack[index](
            hidden[:, :end],
            attention_mask=mask[..., :end, :end],
            position_bias=position_bias(stack, positions[:, :end], positions[:, :end], bidirectional=True),
        )[0]
        if index == len(stack) - 1:
            states = self._finish(0, states)
        return torch.cat([torch.where(is_source[:, :end, None], states, hidden[:, :end]), hidden[:, end:]], dim=1)

    def _decode(
        self,
        stack: nn.ModuleList,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        source_mask: Float[Tensor, "batch 1 tokens all"],
        target_mask: Float[Tensor, "batch 1 tokens all"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        is_source, is_target = _sees_itself(source_mask), _sees_itself(target_mask)
        start, end = int(is_source.sum(1).min()), int(is_source.sum(1).max())
        attend, cross, feed = decoder_parts(stack[index])
        if cache is not None and cache.source is None:
            cache.source = WholeCache((Kept(*source_keys(cross, hidden[:, :end])),))
        if not bool(is_target.any()):
            return hidden
        keys = positions if cache is None or cache.positions is None else torch.cat([cache.positions, positions], dim=1)
        first = start if cache is None else keys.shape[1] - (cache.get_seq_length() + positions.shape[1] - start)
        states = attend(
            hidden[:, start:],
            attention_mask=target_mask[..., start:, first:],
            position_bias=position_bias(stack, positions[:, start:], keys[:, first:], bidirectional=False),
            past_key_values=cache,
        )[0]
        end = end if cache is None or cache.source is None else cache.source.get_seq_length()
        if end > 0:
            cross_mask = source_mask[..., start:, :end]
            source = None if cache is None else cache.source
            # The library wants states to look at even where their keys are given; one column is the least.
            seen = hidden[:, : end if source is None else 1]
            crossed = cross(states, seen, attention_mask=cross_mask, past_key_values=source)[0]
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


def _sees_itself(mask: Float[Tensor, "batch 1 tokens all"]) -> Bool[Tensor, "batch tokens"]:
    own = mask.squeeze(1)[..., -mask.shape[2] :]  # the keys before were read before
    return own.diagonal(dim1=-2, dim2=-1) == 0
