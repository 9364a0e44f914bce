"""A late-interacting backbone in service: lower states from a cache, a user's trunk read once for all candidates.

This module knows no task: whatever scores by ``backbone(batch)`` is served unchanged.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from m6rec.backbones.base import Backbone, WrappedBackbone
from m6rec.backbones.past import Past, read, read_on
from m6rec.errors import CacheError
from m6rec.late_interaction.backbone import LateBackbone
from m6rec.late_interaction.cache import SegmentCache, States, segment_key
from m6rec.late_interaction.segments import SegmentTable
from m6rec.text.batch import TokenBatch, branch_ends


def version_of(backbone: LateBackbone) -> str:
    """Return what the lower states of a backbone depend on besides a segment: weights, tuner, depth and granularity."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.inner.named_parameters()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    weights, tuned = backbone.fingerprint[:16], digest.hexdigest()[:16]
    return f"{weights}/{tuned}/{backbone.num_alone}/{backbone.what_goes_on}"


@dataclass(frozen=True)
class Branches:
    """The branches of a batch, each as a row of its own.

    Args:
        rows: ``[branches]`` row of the batch.
        columns: ``[branches, longest]`` their columns there.
        keep: ``[branches, longest]`` ``False`` behind a branch's end.
    """

    rows: Int[Tensor, " branches"]
    columns: Int[Tensor, "branches longest"]
    keep: Bool[Tensor, "branches longest"]

    @staticmethod
    def of(tokens: TokenBatch) -> "Branches":
        """Find every branch; rows in order, and within a row as they stand."""
        rows, ends = branch_ends(tokens)
        in_branch = tokens.keep & (tokens.branches > 0)
        before = torch.cat([torch.zeros_like(tokens.branches[:, :1]), tokens.branches[:, :-1]], dim=1)
        starts = (in_branch & (tokens.branches != before)).nonzero()[:, 1]
        longest = int((ends - starts).max()) + 1 if len(rows) else 0
        columns = starts[:, None] + torch.arange(longest, device=rows.device)
        keep = columns <= ends[:, None]
        return Branches(rows, torch.where(keep, columns, ends[:, None]), keep)

    def slice(self, start: int, stop: int) -> "Branches":
        """Return some of them, no wider than they need."""
        keep = self.keep[start:stop]
        longest = int(keep.sum(1).max())
        return Branches(self.rows[start:stop], self.columns[start:stop, :longest], keep[:, :longest])

    def tokens(self, batch: TokenBatch, lead: int) -> TokenBatch:
        """Return them as new tokens of the trees that ``lead`` virtual tokens stand before."""
        names = ("ids", "positions", "blocks", "branches")
        fields = {name: getattr(batch, name)[self.rows[:, None], self.columns] for name in names}
        return TokenBatch(**{**fields, "positions": fields["positions"] - lead, "keep": self.keep})


class LateScorer(WrappedBackbone):
    """Scores candidates with the lower layers cached by segment and the trunk's joint layers run once.

    Its states are those of the backbone inside, to rounding, for every family, tuner, depth and granularity (tested):
    what training scores in one pass is what is served. All branches of a batch are one tensor from the cache to the
    last layer, in slices of ``branches_at_once``.

    Args:
        inner: trained; changing its weights afterwards wants a new scorer.
        cache: shared with others of the same version; ``None`` = one of its own.
        num_trunks: how many users' trunks are kept read, for a request that comes in pieces or comes again.
        branches_at_once: most candidates in one pass; speed and memory only.

    Source: M6-Rec (arXiv 2205.08084), section on late interaction; PreTTR (arXiv 2004.14255) for the split.
    Differs: the trunk never sees a candidate, so its keys and values in the joint layers are shared by all of them.

    Raises:
        CacheError: the cache is of another version.
    """

    inner: LateBackbone

    def __init__(
        self,
        inner: LateBackbone,
        cache: SegmentCache | None = None,
        num_trunks: int = 8,
        branches_at_once: int = 128,
    ) -> None:
        super().__init__(inner)
        version = version_of(inner)
        self.cache = SegmentCache(version) if cache is None else cache
        if self.cache.version != version:
            raise CacheError(
                f"got a segment cache of version {self.cache.version}, expected {version}: weights, tuner, layers and "
                "granularity have to be those that it was filled with; open one with version_of(backbone)"
            )
        self.num_trunks, self.branches_at_once = num_trunks, branches_at_once
        self._trunks: OrderedDict[bytes, tuple[Tensor, Past]] = OrderedDict()
        self.eval()

    @torch.no_grad()
    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Float[Tensor, "batch tokens hidden"]:
        """Return the states that the backbone inside would, from cached segments.

        Raises:
            BackboneError: as the backbone inside; or it has no keys and values to share (a convolution).
        """
        if layers is not None:  # a part of the walk: nothing that is cached is of it
            states: Tensor = self.inner(batch, layers)
            return states
        whole, segments = self.inner.cut(batch)
        lead = whole.ids.shape[1] - batch.ids.shape[1]
        junction, hidden = self.inner.join(whole, segments, self.vectors(segments.table))
        return junction.spread(self._together(junction.tokens, hidden, lead))[:, lead:]

    def vectors(self, table: SegmentTable) -> Float[Tensor, "segments vectors hidden"]:
        """Return what each segment hands on: from the cache, or read now and kept."""
        found = self._from_cache(table)
        counts = torch.tensor([len(states) for states in found])
        padded = torch.zeros(len(found), int(counts.max()), self.hidden_size)
        padded[torch.arange(padded.shape[1]) < counts[:, None]] = torch.from_numpy(np.concatenate(found)).float()
        return padded.to(self.control.device, next(self.inner.model.parameters()).dtype)

    def _from_cache(self, table: SegmentTable) -> list[States]:
        ids, lengths, targets = table.ids.cpu().numpy(), table.lengths.tolist(), table.is_target.tolist()
        keys = [segment_key(row[:end], target) for row, end, target in zip(ids, lengths, targets, strict=True)]
        cached = [key for key, below in zip(keys, self.inner.below(table).tolist(), strict=True) if below]
        known = zip(cached, self.cache.get_many(cached), strict=True)
        found = {key: states for key, states in known if states is not None}
        missing = [row for row, key in enumerate(keys) if key not in found]
        if missing:
            some = table.take(torch.tensor(missing, device=table.ids.device))
            states, counts = self.inner.alone(some).float().cpu().numpy(), self.inner.counts(some).tolist()
            fresh = {keys[row]: states[n, : counts[n]] for n, row in enumerate(missing)}
            found |= fresh | self.cache.put_many({key: fresh[key] for key in cached if key in fresh})
        return [found[key] for key in keys]

    def _together(
        self, tokens: TokenBatch, hidden: Float[Tensor, "batch columns hidden"], lead: int
    ) -> Float[Tensor, "batch columns hidden"]:
        """Run the joint layers: the trunks, then all branches over what these have left."""
        width = max(lead, int((tokens.keep & (tokens.branches == 0)).sum(1).max()))
        states = torch.zeros_like(hidden)
        past = None
        if width:
            states[:, lead:width], past = self._read_trunks(tokens, hidden[:, :width], lead)
        every = Branches.of(tokens)
        for start in range(0, len(every.rows), self.branches_at_once):
            some = every.slice(start, start + self.branches_at_once)
            new, entering = some.tokens(tokens, lead), hidden[some.rows[:, None], some.columns]
            if past is None:
                found, _ = read(self.inner.inner, new, entering, self._walk)
            else:
                found, _ = read_on(self.inner.inner, past.take(some.rows), new, entering)
            states[some.rows[:, None].expand_as(some.keep)[some.keep], some.columns[some.keep]] = found[some.keep]
        return states

    @property
    def _walk(self) -> range:
        return range(self.inner.num_alone, self.num_layers)

    def _read_trunks(
        self, tokens: TokenBatch, hidden: Float[Tensor, "batch trunk hidden"], lead: int
    ) -> tuple[Float[Tensor, "batch own hidden"], Past]:
        """Read the trunks of a batch, or recall that of a single request."""
        fields = {name: value[:, lead : hidden.shape[1]] for name, value in vars(tokens).items() if value is not None}
        fields["keep"] = fields["keep"] & (fields["branches"] == 0)
        trunk = replace(TokenBatch(**fields), positions=fields["positions"] - lead)
        if trunk.size != 1:
            return read(self.inner.inner, trunk, hidden, self._walk)
        key = _digest(hidden.float(), trunk.blocks, trunk.positions, trunk.keep)
        if key not in self._trunks:
            self._trunks[key] = read(self.inner.inner, trunk, hidden, self._walk)
        self._trunks.move_to_end(key)
        while len(self._trunks) > max(1, self.num_trunks):
            self._trunks.popitem(last=False)
        return self._trunks[key]


def served(backbone: Backbone) -> Backbone:
    """Return a trained backbone as it is served: one with late interaction behind a cache, any other as it is."""
    return LateScorer(backbone) if isinstance(backbone, LateBackbone) else backbone


def _digest(*tensors: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.digest()
