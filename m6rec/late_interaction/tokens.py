"""A vector a token, for retrieval by MaxSim. This module knows no text, no index and no catalogue."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.nn.maxsim import maxsim_in_batch
from m6rec.text.batch import TokenBatch


class TokenReadout(nn.Module):
    """Reads a text as a short unit vector for each of its tokens.

    Users and items, each as a text, meet in MaxSim alone: items are read once and indexed
    (:class:`m6rec.indexes.multivector.MultiVectorIndex`).

    Args:
        hidden_size: of the backbone's states.
        width: of the vectors; ``None`` = the states' own, and nothing is trained here.
        temperature: what scores are divided by in the loss, for a mean over the user's tokens.

    Source: Khattab and Zaharia, ColBERT (arXiv 2004.12832): a linear layer, unit vectors, MaxSim.
    Differs: scores are means over the user's tokens in the loss, so that a long history is no louder than a short one.
    """

    def __init__(self, hidden_size: int, width: int | None = 128, temperature: float = 0.05) -> None:
        super().__init__()
        self.project = nn.Identity() if width is None else nn.Linear(hidden_size, width, bias=False)
        self.temperature = temperature

    def forward(self, backbone: Backbone, batch: TokenBatch) -> Float[Tensor, "texts tokens width"]:
        """Return the vectors of a batch of texts; zeros on padding, as the index has it."""
        vectors = F.normalize(self.project(backbone(batch).float()), dim=-1)
        return vectors * batch.keep.unsqueeze(-1)

    @torch.no_grad()
    def encode(self, backbone: Backbone, batch: TokenBatch) -> NDArray[np.float32]:
        """Return the vectors as the index takes them, without gradients."""
        vectors: NDArray[np.float32] = self(backbone, batch).cpu().numpy()
        return vectors

    def loss(
        self,
        users: Float[Tensor, "users tokens width"],
        items: Float[Tensor, "items vectors width"],
        targets: Int[Tensor, " users"],
        excluded: Bool[Tensor, "users items"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean contrastive loss of each user against its item, the batch's other items as negatives.

        Args:
            users: as ``forward`` gives them.
            items: the batch's.
            targets: which item is each user's.
            excluded: other items that a user likes too: no negatives.
        """
        keep = users.any(-1)
        scores = maxsim_in_batch(users, items, keep, items.any(-1)) / keep.sum(1, keepdim=True).clamp(min=1)
        if excluded is not None:
            scores = scores.masked_fill(excluded, float("-inf"))
        return F.cross_entropy(scores / self.temperature, targets)
