"""CVAR: a variational autoencoder learns which rows warm items end with, given their features. Knows no training."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from m6rec.coldstart.baselines.deepfm import DeepFM
from m6rec.coldstart.item_tasks import Facts, ItemTasks


class CVAR(DeepFM):
    """DeepFM whose new items start with the row that a decoder makes from what their features lead it to expect.

    To be trained in two stages: DeepFM from rows, then encoders and decoder alone.

    Args:
        facts: of all items.
        num_users: how many there are.
        width: of a field's vector.
        code: numbers of a code.
        align_weight: of the distance between the two encoders' codes.
        rebuild_weight: of the distance between a row and the one that is made of it.

    Source: Zhao et al., Improving item cold-start recommendation via model-agnostic conditional variational
        autoencoder (arXiv 2205.13795), equations 4 to 9.
    Differs: the number of an item's judgements is no input of the decoder, for a new item is started once; warm-up then
        steps on its row, as for the others.
    """

    def __init__(
        self,
        facts: Facts,
        num_users: int,
        width: int = 16,
        code: int = 16,
        align_weight: float = 0.1,
        rebuild_weight: float = 1.0,
    ) -> None:
        super().__init__(facts, num_users, width)
        self.align_weight, self.rebuild_weight = align_weight, rebuild_weight
        size = len(self.fields.of_item) * width
        self.encoder = nn.Linear(width, 2 * code)
        self.prior = nn.Sequential(nn.Linear(size, 2 * code), nn.ReLU(), nn.Linear(2 * code, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code + size, width), nn.ReLU(), nn.Linear(width, width))

    def made(self) -> Iterator[nn.Parameter]:
        """Yield what the second stage trains."""
        for part in (self.encoder, self.prior, self.decoder):
            yield from part.parameters()

    def start(self, items: Int[Tensor, " items"]) -> dict[str, Tensor]:
        """Return the row that the mean of the expected codes is decoded to."""
        known = self.fields.known(items).flatten(1)
        mean, _ = self.prior(known).chunk(2, dim=1)
        return {"row": self._decode(mean, known)}

    def learnt(self, items: Int[Tensor, " items"]) -> dict[str, Tensor]:
        """Return the rows of items that are learnt from."""
        return {"row": self.rows(items)}

    def _decode(self, code: Float[Tensor, "items code"], known: Float[Tensor, "items known"]) -> Tensor:
        return torch.as_tensor(self.decoder(torch.cat([code, known], dim=1)))

    def step(self, known: ItemTasks, asked: ItemTasks) -> Float[Tensor, ""]:
        """Return the loss of the second stage: rows are rebuilt, both encoders agree, and what is made predicts."""
        rows, facts = self.rows(asked.items).detach(), self.fields.known(asked.items).flatten(1).detach()
        (seen, seen_log), (led, led_log) = (part.chunk(2, dim=1) for part in (self.encoder(rows), self.prior(facts)))
        widths = [(0.5 * log).exp() for log in (seen_log, led_log)]
        drawn = [mean + torch.randn_like(mean) * width for mean, width in zip((seen, led), widths, strict=True)]
        rebuilt, expected = (self._decode(code, facts) for code in drawn)
        apart = (seen - led).square().sum(1) + (widths[0] - widths[1]).square().sum(1)
        loss = self.losses(asked, {"row": rebuilt}) + self.losses(asked, {"row": expected})
        missed = (rebuilt - rows).square().sum(1)
        return (loss + self.align_weight * apart + self.rebuild_weight * missed).mean()
