"""A late-interacting backbone in service: lower states from a cache, a user's trunk read once for all candidates.

This module knows no task: whatever scores by ``backbone(batch)`` is served unchanged.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from m6rec.backbones.base import Backbone, Head, WrappedBackbone
from m6rec.backbones.conditions import GivenBackbone
from m6rec.backbones.past import Past, read, read_ends, read_on
from m6rec.errors import CacheError
from m6rec.late_interaction.backbone import LateBackbone
from m6rec.late_interaction.cache import SegmentCache, SegmentStore, States, segment_key
from m6rec.late_interaction.packs import Packs, pack
from m6rec.late_interaction.segments import Junction, SegmentTable
from m6rec.nn.digest import digest_of
from m6rec.text.batch import TokenBatch, branch_ends


def version_of(backbone: LateBackbone) -> str:
    """Return what the lower states of a backbone depend on besides a segment: weights, tuner, depth and granularity."""
    weights, tuned = backbone.fingerprint[:16], digest_of(backbone.inner.named_parameters())[:16]
    return f"{weights}/{tuned}/{backbone.num_alone}/{backbone.what_goes_on}"


class LateScorer(WrappedBackbone):
    """Scores candidates with the lower layers cached by segment and the trunk's joint layers run once.

    Its states are those of the backbone inside, to rounding, for every family, tuner, depth and granularity (tested):
    what training scores in one pass is what is served. All branches of a batch are one tensor from the cache to the
    last layer, in slices of ``branches_at_once``.

    Args:
        inner: trained; changing its weights afterwards wants a new scorer.
        cache: shared with others of the same version; ``None`` = one of its own.
        num_trunks: how many users' trunks are kept read, for a request that comes in pieces or comes again; 0 = none.
        branches_at_once: most candidates in one pass; speed and memory only.

    Attributes:
        version: of the caches that it can use (:func:`version_of`).

    Source: M6-Rec (arXiv 2205.08084), section on late interaction; PreTTR (arXiv 2004.14255) for the split.
    Differs: the trunk never sees a candidate, so its keys and values in the joint layers are shared by all of them.

    Raises:
        CacheError: the cache is of another version.
    """

    inner: LateBackbone
    cache: SegmentStore

    def __init__(
        self,
        inner: LateBackbone,
        cache: SegmentStore | None = None,
        num_trunks: int = 8,
        branches_at_once: int = 128,
    ) -> None:
        super().__init__(inner)
        self.version = version_of(inner)
        self.use(SegmentCache(self.version) if cache is None else cache)
        self.num_trunks, self.branches_at_once = num_trunks, branches_at_once
        self._trunks: OrderedDict[bytes, tuple[Tensor, Past]] = OrderedDict()
        self._lock = threading.Lock()
        self.eval()

    def use(self, cache: SegmentStore) -> None:
        """Keep segments in another cache from here on: a larger one, one on disk, one that others share.

        Raises:
            CacheError: it is of another version.
        """
        if cache.version != self.version:
            raise CacheError(
                f"got a segment cache of version {cache.version}, expected {self.version}: weights, tuner, layers and "
                "granularity have to be those that it was filled with; open one with the scorer's version"
            )
        self.cache = cache

    @torch.no_grad()
    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Float[Tensor, "batch tokens hidden"]:
        """Return the states that the backbone inside would, from cached segments.

        Raises:
            BackboneError: as the backbone inside; or it has no keys and values to share (a convolution).
        """
        if layers is not None:  # a part of the walk: nothing that is cached is of it
            states: Tensor = self.inner(batch, layers)
            return states
        junction, hidden, lead = self._join(batch)
        tokens, states = junction.tokens, torch.zeros_like(hidden)
        trunks, past = self._read_trunks(tokens, hidden, lead)
        states[:, lead : lead + trunks.shape[1]] = trunks
        for some in self._slices(pack(tokens)):
            new, entering = some.tokens(tokens, lead), hidden[some.rows[:, None], some.columns]
            found, _ = read_on(self.inner.inner, past.take(some.rows), new, entering)
            states[some.rows[:, None].expand_as(some.keep)[some.keep], some.columns[some.keep]] = found[some.keep]
        return junction.spread(states)[:, lead:]

    @torch.no_grad()
    def classify(
        self, batch: TokenBatch, rows: Int[Tensor, " points"], columns: Int[Tensor, " points"], head: Head
    ) -> Float[Tensor, "points classes"]:
        """Return ``head`` of the states at some points; where they are the branches' ends, nothing else is computed."""
        ends = branch_ends(batch)
        if not len(rows) or not (torch.equal(rows, ends[0]) and torch.equal(columns, ends[1])):
            return super().classify(batch, rows, columns, head)
        return head(self.ends(batch), torch.arange(len(rows), device=rows.device))

    @torch.no_grad()
    def ends(self, batch: TokenBatch) -> Float[Tensor, "branches hidden"]:
        """Return the state of every branch's last token, row by row and branch by branch."""
        junction, hidden, lead = self._join(batch)
        tokens = junction.tokens
        _, past = self._read_trunks(tokens, hidden, lead)
        found = [hidden.new_zeros(0, hidden.shape[-1])]
        for some in self._slices(pack(tokens)):
            new, entering = some.tokens(tokens, lead), hidden[some.rows[:, None], some.columns]
            states = read_ends(self.inner.inner, past.take(some.rows), new, some.ends, entering)
            found.append(states[some.ends >= 0])
        return torch.cat(found)

    def forget_trunks(self) -> None:
        """Read every user's trunk anew from here on; the segments stay cached."""
        with self._lock:
            self._trunks.clear()

    def _join(self, batch: TokenBatch) -> tuple[Junction, Float[Tensor, "batch columns hidden"], int]:
        """Return where the vectors stand, the states that enter the joint layers, and how many are virtual tokens'."""
        whole, segments = self.inner.cut(batch)
        junction, hidden = self.inner.join(whole, segments, self.vectors(segments.table))
        return junction, hidden, whole.ids.shape[1] - batch.ids.shape[1]

    def _slices(self, packs: Packs) -> Iterator[Packs]:
        """Yield packs of at most ``branches_at_once`` branches together, but one at least."""
        step = max(1, self.branches_at_once // max(1, packs.ends.shape[1]))
        for start in range(0, len(packs.rows), step):
            yield packs.slice(start, start + step)

    @torch.no_grad()
    def remember(self, batch: TokenBatch) -> list[bytes]:
        """Have a batch's distinct segments in the cache, without any joint layer; return their keys."""
        table = self.inner.cut(batch)[1].table
        self.vectors(table)
        return [key for key, below in zip(self._keys(table), self.inner.below(table).tolist(), strict=True) if below]

    def vectors(self, table: SegmentTable) -> Float[Tensor, "segments vectors hidden"]:
        """Return what each segment hands on: from the cache, or read now and kept."""
        found = self._from_cache(table)
        counts = torch.tensor([len(states) for states in found])
        padded = torch.zeros(len(found), int(counts.max()), self.hidden_size)
        padded[torch.arange(padded.shape[1]) < counts[:, None]] = torch.from_numpy(np.concatenate(found)).float()
        return padded.to(self.control.device, next(self.inner.model.parameters()).dtype)

    def _from_cache(self, table: SegmentTable) -> list[States]:
        keys = self._keys(table)
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

    def _keys(self, table: SegmentTable) -> list[bytes]:
        """Return the segments' keys; a condition is part of its segments'."""
        ids, ends, targets = table.ids.cpu().numpy(), table.lengths.tolist(), table.is_target.tolist()
        keys = [segment_key(row[:end], target) for row, end, target in zip(ids, ends, targets, strict=True)]
        return [key + self._condition(number) for key, number in zip(keys, table.conditions.tolist(), strict=True)]

    def _condition(self, number: int) -> bytes:
        inner = self.inner.inner
        return inner.conditions.digests[number] if number >= 0 and isinstance(inner, GivenBackbone) else b""

    def _condition_of_trunk(self, tokens: TokenBatch) -> bytes:
        return b"" if tokens.conditions is None else self._condition(int(tokens.conditions[0, 0]))

    def _read_trunks(
        self, tokens: TokenBatch, hidden: Float[Tensor, "batch columns hidden"], lead: int
    ) -> tuple[Float[Tensor, "batch trunk hidden"], Past]:
        """Read the trunks of a batch, or recall that of a single request."""
        in_trunk = tokens.keep & (tokens.branches == 0)
        # A hidden column stands for a trunk where no row has one.
        width = max(lead + 1, int(in_trunk.sum(1).max()))
        columns = {name: value for name, value in vars(tokens).items() if value is not None and name != "conditions"}
        fields = {name: value[:, lead:width] for name, value in columns.items()}
        fields |= {"keep": in_trunk[:, lead:width], "positions": fields["positions"] - lead}
        fields["branches"] = torch.zeros_like(fields["branches"])
        trunk, entering = TokenBatch(**fields), hidden[:, :width]
        walk = range(self.inner.num_alone, self.num_layers)
        if trunk.size != 1 or not self.num_trunks:
            return read(self.inner.inner, trunk, entering, walk)
        key = _digest(entering.float(), trunk.blocks, trunk.positions, trunk.keep) + self._condition_of_trunk(tokens)
        with self._lock:
            found = self._trunks.pop(key, None)
        found = read(self.inner.inner, trunk, entering, walk) if found is None else found
        # Numbers of conditions are this request's, whichever read the trunk.
        found = found[0], replace(found[1], tokens=replace(found[1].tokens, conditions=tokens.conditions))
        with self._lock:
            self._trunks[key] = found
            while len(self._trunks) > self.num_trunks:
                self._trunks.popitem(last=False)
        return found


def served(backbone: Backbone) -> Backbone:
    """Return a trained backbone as it is served: one with late interaction behind a cache, any other as it is."""
    return LateScorer(backbone) if isinstance(backbone, LateBackbone) else backbone


def _digest(*tensors: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.digest()
