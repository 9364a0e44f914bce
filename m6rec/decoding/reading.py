"""The two steps that every search takes: read the prompts, read one token more. Knows no way to choose a token."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.backbones.past import Past, read, read_on
from m6rec.decoding.opening import Opening
from m6rec.text.batch import collate


def begin(
    backbone: Backbone, openings: Sequence[Opening], pad_id: int
) -> tuple[Float[Tensor, "rows vocabulary"], Past]:
    """Read the prompts, each different one once, and return the logits of their first tokens."""
    different = {id(opening.tokens): opening.tokens for opening in openings}
    places = {key: place for place, key in enumerate(different)}
    batch = collate(list(different.values()), pad_id).to(backbone.control.device)
    with evaluating(backbone):
        states, past = read(backbone, batch)
        last = batch.keep.sum(1) - 1
        logits = backbone.logits(states[torch.arange(batch.size, device=last.device), last]).float()
    rows = torch.tensor([places[id(opening.tokens)] for opening in openings], device=last.device)
    return logits[rows], past.take(rows)


def go_on(
    backbone: Backbone, past: Past, tokens: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, "rows vocabulary"], Past]:
    """Read one more token of every row and return the logits of the next."""
    with evaluating(backbone):
        states, past = read_on(backbone, past, past.follow(tokens[:, None]))
        return backbone.logits(states[:, -1]).float(), past


@contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Read without gradients and without dropout, and leave the backbone as it was.

    Around each step, not around the loop: a stream hands control back to its reader in between.
    """
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        backbone.train(training)
