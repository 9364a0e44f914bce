"""Answers as rows of a softmax weight. Knows no model and no meaning of the answers."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Similarity = Literal["dot", "scaled", "cosine"]


@dataclass(frozen=True)
class Options:
    """A softmax head whose weight is somebody else's.

    Args:
        rows: one row an answer.
        similarity: of a state and a row: their product, that over the root of the width, or their cosine.
        temperature: what the similarity is divided by.

    Source: M6-Rec (arXiv 2205.08084), figure 2: p(y=c|x) is the softmax over c of h . o_c.
    """

    rows: Float[Tensor, "classes hidden"]
    similarity: Similarity = "dot"
    temperature: float = 1.0

    def __call__(self, states: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape classes"]:
        """Return the logit of every answer.

        >>> rows, state = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0.0, 8.0])
        >>> [Options(rows, kind)(state).tolist() for kind in ("dot", "cosine")]
        [[32.0, 16.0], [0.800000011920929, 1.0]]
        """
        rows, scale = self.rows, 1 / self.temperature
        if self.similarity == "cosine":
            # In full precision, under autocast too: bfloat16 has too few steps between two cosines.
            with torch.autocast(states.device.type, enabled=False):
                return F.linear(F.normalize(states.float(), dim=-1), F.normalize(rows.float(), dim=-1)) * scale
        if self.similarity == "scaled":
            scale *= rows.shape[-1] ** -0.5
        return F.linear(states, rows.to(states.dtype)) * scale
