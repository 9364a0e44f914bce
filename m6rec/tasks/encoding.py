"""One vector a text: item and search segments through a backbone. Knows no catalogue, no user and no loss."""

import sys
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.nn import pooling
from m6rec.text.batch import TokenBatch
from m6rec.text.segments import CONTROL_TOKENS

Region = Literal["source", "target"]
Readout = Literal["mean", "end"]


class SegmentEncoder:
    """Reads segments as ``[BOS'] text [EOS']`` or ``[BOS] text [EOS]`` and takes one state of each.

    Args:
        region: ``"source"`` is read both ways where the family can, ``"target"`` left to right.
        readout: ``"mean"`` over the segment's tokens, or the state at its end token.
        num_layers: lower layers of the walk that are used; ``None`` = all.
        max_tokens: longest text in tokens, control tokens not counted; the tail is cut.
        batch_tokens: padded tokens a batch; speed and memory only.

    Source: M6-Rec section 1.4 reads items in the target region at [EOS]; sentence encoders such as MiniLM were trained
        to be read in the source region, by their mean.
    """

    def __init__(
        self,
        region: Region = "source",
        readout: Readout = "mean",
        num_layers: int | None = None,
        max_tokens: int = 64,
        batch_tokens: int = 4096,
    ) -> None:
        self.region, self.readout, self.num_layers = region, readout, num_layers
        self.max_tokens, self.batch_tokens = max_tokens, batch_tokens

    def batch(self, backbone: Backbone, texts: Sequence[Sequence[int]]) -> TokenBatch:
        """Pad token lists into one batch, control tokens around each."""
        names = CONTROL_TOKENS[:2] if self.region == "source" else CONTROL_TOKENS[2:]
        begin, end = backbone.tokenizer.convert_tokens_to_ids(list(names))
        rows = [[begin, *text[: self.max_tokens], end] for text in texts]
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        keep = torch.zeros(len(rows), width, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            keep[number, : len(row)] = True
        return TokenBatch(
            ids=ids,
            keep=keep,
            positions=torch.arange(width).expand(len(rows), width).contiguous(),
            blocks=torch.zeros_like(ids),
            branches=torch.full_like(ids, int(self.region == "target")),
        )

    def read(self, backbone: Backbone, batch: TokenBatch) -> Float[Tensor, "texts hidden"]:
        """Walk and read out, in float32; gradients flow where the backbone has any."""
        layers = None if self.num_layers is None else range(self.num_layers)
        states = backbone(batch, layers).float()
        return pooling.mean(states, batch.keep) if self.readout == "mean" else pooling.last(states, batch.keep)

    @torch.no_grad()
    def encode(
        self,
        backbone: Backbone,
        texts: Sequence[Sequence[int]],
        what: str = "texts",
    ) -> Float[Tensor, "texts hidden"]:
        """Return the vectors of any number of token lists, in their order, without gradients, on the CPU.

        Args:
            what: noun for the progress bar, which shows only on a terminal and for long work.
        """
        vectors = torch.zeros(len(texts), backbone.hidden_size)
        for rows, batch in self.batches(backbone, texts, what):
            vectors[torch.tensor(rows)] = self.read(backbone, batch).float().cpu()
        return vectors

    def batches(
        self, backbone: Backbone, texts: Sequence[Sequence[int]], what: str = "texts"
    ) -> Iterator[tuple[list[int], TokenBatch]]:
        """Yield row numbers and batches of any number of token lists, while the backbone infers.

        Args:
            what: noun for the progress bar, as :meth:`encode` has it.
        """
        training = backbone.training
        backbone.eval()
        device = next(backbone.parameters()).device
        groups = track(
            list(self.groups(texts)),
            f"encoding {len(texts)} {what}",
            console=Console(stderr=True),
            transient=True,
            disable=len(texts) < 1000 or not sys.stderr.isatty(),
        )
        for rows in groups:
            yield rows, self.batch(backbone, [texts[row] for row in rows]).to(device)
        backbone.train(training)

    def groups(self, texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield row numbers of similar length whose padded size stays within the budget."""
        group: list[int] = []
        for row in sorted(range(len(texts)), key=lambda number: len(texts[number])):
            width = min(len(texts[row]), self.max_tokens) + 2
            if group and (len(group) + 1) * width > self.batch_tokens:
                yield group
                group = []
            group.append(row)
        if group:
            yield group
