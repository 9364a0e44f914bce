"""A backbone whose lower layers read every segment alone. This module knows no cache and no task."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.backbones.anatomy import part
from m6rec.backbones.base import Backbone, WrappedBackbone
from m6rec.backbones.conditions import GivenBackbone
from m6rec.backbones.scenes import SceneBackbone
from m6rec.errors import BackboneError
from m6rec.late_interaction.config import LateInteractionConfig
from m6rec.late_interaction.segments import Junction, Segments, SegmentTable, cut, join
from m6rec.nn import pooling
from m6rec.text.batch import TokenBatch

FILE = "late_interaction.safetensors"
# What the paper keeps online.
ONLINE_LAYERS = 3


class LateBackbone(WrappedBackbone):
    """A backbone, tuned or not, that reads segments alone below layer L' and all of them together from there on.

    Below, every segment is a text of its own: it starts at position 0 and sees itself alone, forward where it stands in
    a branch. So its states there depend on its words and on nothing else, and can be kept. Then a learned embedding of
    its index on the way is added to all its states, and the joint layers read the tree as ever. Virtual tokens are
    segment 0, ``[EOS]`` is one too: what a candidate is read by has seen nothing that is kept.

    Both masks of the paper are one walk here: equal segments of a batch, whoever's they are, are read once, as rows of
    their own, which is what a block-diagonal mask means (tested against it). Families whose layers look at positions
    (rotary, T5) see those of the tree in the joint layers. T5 keeps to its encoder: a branch begins in the decoder, and
    is neither read alone nor pooled.

    Args:
        inner: tuned, or bare.
        config: where to join, and what.

    Source: M6-Rec (arXiv 2205.08084), multi-segment late interaction; pooled: BAHE (arXiv 2403.19347), one vector an
        atomic behaviour; T5 with all of its encoder below: Fusion-in-Decoder (arXiv 2007.01282).
    Differs: the embedding of the segment index starts at zero, so that training starts at the pretrained joint layers.
        A branch counts on from the trunk segments that it sees, so that a tree numbers it as it would stand alone.

    Raises:
        BackboneError: there are not so many layers, or the backbone has scenes.
    """

    def __init__(self, inner: Backbone, config: LateInteractionConfig | None = None) -> None:
        super().__init__(inner)
        self.config = config or LateInteractionConfig()
        self.num_alone = _layers_alone(inner, self.config.layers)
        table = torch.zeros(self.config.max_segments, inner.hidden_size, device=inner.control.device)
        self.segment_embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.train(inner.training)

    def around(self, inner: Backbone) -> WrappedBackbone:
        """Return a view of this backbone around ``inner``, given conditions: a segment is read alone under its own.

        Raises:
            BackboneError: conditions that reach beyond their tokens, such as prompts.
        """
        if not isinstance(inner, GivenBackbone):
            raise BackboneError(
                "got late interaction under conditions that stand before the text, expected such as change each token "
                "by itself, for a kept segment is read alone; take tuner.form=modulation or lora"
            )
        return super().around(inner)

    def cut(self, batch: TokenBatch) -> tuple[TokenBatch, Segments]:
        """Return a batch with what is read before every text, and its segments.

        Raises:
            BackboneError: more segments on a way than there are indices, or a longer text than there are positions.
        """
        _check_fits(int(batch.positions.max()) + 1, "tokens", self.max_tokens, "give the layout a budget")
        whole = self.extend(batch)
        segments = cut(whole)
        remedy = "show fewer events, or set late_interaction.max_segments"
        _check_fits(int(segments.path.max()) + 1, "segments", self.config.max_segments, remedy)
        return whole, segments

    def counts(self, table: SegmentTable) -> Int[Tensor, " segments"]:
        """Return how many vectors each segment hands on: virtual tokens, and T5's branches, are never pooled."""
        if self.config.granularity == "token":
            return table.lengths
        whole = (table.ids[:, 0] >= len(self.tokenizer)) | ~self.below(table)
        return torch.where(whole, table.lengths, table.lengths.clamp(max=self.config.vectors))

    def below(self, table: SegmentTable) -> Bool[Tensor, " segments"]:
        """Return which segments the lower layers read at all: not T5's branches, which begin in the decoder."""
        return ~table.is_target if self.family == "seq2seq" else torch.ones_like(table.is_target)

    def alone(
        self, table: SegmentTable, layers: Sequence[int] | None = None
    ) -> Float[Tensor, "segments vectors hidden"]:
        """Return the vectors that each segment hands on, read alone; zeros behind its last.

        Args:
            table: distinct segments.
            layers: the lower layers of the walk; ``None`` = all.
        """
        walk = range(self.num_alone) if layers is None else layers
        most, groups = max(1, int(self.counts(table).max())), list(self._groups(table))
        found = []
        for rows in groups:
            some = table.take(rows)
            batch = some.batch()
            mask, hidden = self.mask(batch), self.embed(batch.ids, batch.positions)
            for index in walk:
                hidden = self.layer(index, hidden, mask, batch.positions)
            if self.config.granularity == "pooled":
                hidden = pooling.chunks(hidden, some.lengths, self.counts(some))
            found.append(F.pad(hidden, (0, 0, 0, most - hidden.shape[1])))
        return torch.cat(found)[torch.cat(groups).argsort()]

    def _groups(self, table: SegmentTable) -> Iterator[Int[Tensor, " rows"]]:
        """Yield rows that are padded together: of lengths within a factor of two."""
        size = table.lengths.clamp(min=1).double().log2().ceil().long()
        kind = 2 * size + self.below(table)
        for number in kind.unique():
            yield (kind == number).nonzero()[:, 0]

    def join(
        self, whole: TokenBatch, segments: Segments, vectors: Float[Tensor, "segments vectors hidden"]
    ) -> tuple[Junction, Float[Tensor, "batch columns hidden"]]:
        """Return where the vectors of a batch stand, and the states that enter the joint layers."""
        junction = join(whole, segments, self.counts(segments.table))
        indices = self.segment_embedding(junction.path)
        return junction, vectors[junction.segment, junction.vector] + indices.to(vectors.dtype)

    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Float[Tensor, "batch tokens hidden"]:
        """Walk: segments alone, then together; return the normed states of every token (of its vector, if pooled).

        Raises:
            BackboneError: the batch does not say what its segments are, or does not fit.
        """
        walk = range(self.num_layers) if layers is None else layers
        whole, segments = self.cut(batch)
        vectors = self.alone(segments.table, [index for index in walk if index < self.num_alone])
        junction, hidden = self.join(whole, segments, vectors)
        mask = self.mask(junction.tokens)
        for index in walk:
            if index >= self.num_alone:
                hidden = self.layer(index, hidden, mask, junction.tokens.positions)
        return junction.spread(self.norm(hidden))[:, whole.ids.shape[1] - batch.ids.shape[1] :]

    def save(self, folder: Path) -> None:
        """Write the table of segment indices into a tuner's folder, beside its adapter."""
        folder.mkdir(parents=True, exist_ok=True)
        card = {"layers": str(self.num_alone), "granularity": self.what_goes_on}
        save_file({"segments": self.segment_embedding.weight.detach().cpu().contiguous()}, folder / FILE, metadata=card)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote.

        Raises:
            BackboneError: it is missing or damaged, or was trained with other settings.
        """
        path = folder / FILE
        try:
            with safe_open(path, framework="pt") as file:
                table, card = file.get_tensor("segments"), file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise BackboneError(
                f"{path} is missing or damaged ({error}); copy it again from where it was saved"
            ) from error
        own = {"layers": str(self.num_alone), "granularity": self.what_goes_on}
        if card != own or table.shape != self.segment_embedding.weight.shape:
            raise BackboneError(
                f"got late interaction with {card} and a table of {tuple(table.shape)} in {folder}, expected {own} and "
                f"{tuple(self.segment_embedding.weight.shape)}; keep the recipe's late_interaction as it was trained"
            )
        with torch.no_grad():
            self.segment_embedding.weight.copy_(table)

    @property
    def what_goes_on(self) -> str:
        """What enters the joint layers, in a word."""
        return "token" if self.config.granularity == "token" else f"pooled-{self.config.vectors}"


def _check_fits(got: int, what: str, limit: int, remedy: str) -> None:
    if got > limit:
        raise BackboneError(f"got {got} {what} on the way to a candidate, expected at most {limit}; {remedy}")


def _layers_alone(backbone: Backbone, asked: int | None) -> int:
    """Return L', or say why it cannot be.

    Raises:
        BackboneError: there are not so many layers, or the backbone has scenes.
    """
    if isinstance(backbone, SceneBackbone):
        raise BackboneError(
            f"got late interaction over {backbone.name} with a part for every scene, expected one for all, for a kept "
            "segment is of no scene; take another tuner than iak, or train without late_interaction"
        )
    limit = backbone.num_layers
    if backbone.family == "seq2seq":
        anatomy: Any = backbone.anatomy
        limit = len(part(backbone.model, anatomy.layers[0]))
    chosen = max(0, limit - ONLINE_LAYERS) if asked is None else asked
    if not 0 <= chosen <= limit:
        what = "encoder layers" if backbone.family == "seq2seq" else "layers"
        raise BackboneError(
            f"late_interaction.layers: got {chosen}, expected 0 to {limit}, for {backbone.name} has {limit} {what}"
        )
    return chosen


def with_late_interaction(
    backbone: Backbone, config: LateInteractionConfig | None, folder: Path | None = None
) -> Backbone:
    """Return ``backbone`` with late interaction as a recipe has it, to be trained; unchanged where it has none.

    Args:
        backbone: tuned.
        config: the recipe's.
        folder: of an adapter to go on from; its table of segment indices is taken where it has one.
    """
    if config is None:
        return backbone
    late = LateBackbone(backbone, config)
    if folder is not None and (folder / FILE).is_file():
        late.load(folder)
    return late


def trained_late_interaction(backbone: Backbone, config: LateInteractionConfig | None, folder: Path) -> Backbone:
    """Return ``backbone`` with late interaction as it was trained beside the adapter in ``folder``, frozen.

    Raises:
        BackboneError: its table is missing, damaged, or of other settings.
    """
    if config is None:
        return backbone
    late = LateBackbone(backbone, config)
    late.load(folder)
    late.requires_grad_(False)
    return late.eval()
