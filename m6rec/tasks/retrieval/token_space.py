"""Where users and items of many vectors each meet: exact MaxSim in bounded memory, and the index of its first stage.

Knows no backbone, no text and no loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from m6rec.indexes import INDEXES
from m6rec.indexes.base import Index
from m6rec.indexes.multivector import MultiVectorConfig

# Inner products held at once: 64 MB.
PRODUCTS_AT_ONCE = 1 << 24
# Items whose vectors are handed to an index at once, in float32.
ITEMS_AT_ONCE = 4096


@dataclass(frozen=True)
class TokenSpace:
    """A catalogue of token vectors.

    Users are token vectors too, ``[users, tokens, dim]``, scaled so that the sum over their tokens is their score: a
    row of zeros is padding on both sides, and adds nothing to a user.

    Args:
        vectors: ``[items, tokens, dim]`` float16, zeros behind an item's last.
        near: how many item vectors near each of a user's make their items candidates of an index.
    """

    vectors: Float[Tensor, "items tokens dim"]
    near: int

    @cached_property
    def texts(self) -> Float[Tensor, "items dim"]:
        """The mean direction of each item's tokens."""
        return F.normalize(self.vectors.sum(1, dtype=torch.float32), dim=1)

    @cached_property
    def counts(self) -> Int[Tensor, " items"]:
        """How many vectors each item has."""
        return self.vectors.any(-1).sum(1)

    def index(self, inner: str, places: NDArray[np.integer]) -> Index:
        """Return an index over some items: near token vectors by ``inner``, then MaxSim."""
        config = MultiVectorConfig(inner=inner, near=self.near, half=True)
        index: Index = INDEXES.load("multivector")(config, dim=self.vectors.shape[2])
        for start in range(0, len(places), ITEMS_AT_ONCE):
            chunk = places[start : start + ITEMS_AT_ONCE]
            index.add(chunk, self.vectors[torch.from_numpy(chunk)].float().numpy())
        return index

    def scores(self, user: Float[Tensor, "tokens dim"], places: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return a user's exact scores of some items."""
        found: NDArray[np.float32] = self.maxsim(user[None].cpu(), torch.from_numpy(places))[0].numpy()
        return found

    def maxsim(
        self, users: Float[Tensor, "users tokens dim"], places: Int[Tensor, " places"] | None = None
    ) -> Float[Tensor, "users places"]:
        """Return every user's exact score of every item (or of some), a chunk of items at a time.

        Source: ColBERT (arXiv 2004.12832), equation 3.
        """
        places = torch.arange(len(self.vectors)) if places is None else places
        tokens, counts = users.flatten(0, 1), self.counts[places]
        found = users.new_empty(len(users), len(places))
        # Items of equally many vectors together: there is no padding to be computed and hidden.
        for count in counts.unique().tolist():
            step = max(1, PRODUCTS_AT_ONCE // max(1, len(tokens) * count))
            for columns in (counts == count).nonzero()[:, 0].split(step):
                items = self.vectors[places[columns], :count].to(users.dtype)
                products = (tokens @ items.flatten(0, 1).T).unflatten(1, items.shape[:2])
                found[:, columns] = products.amax(-1).unflatten(0, users.shape[:2]).sum(1)
        return found

    def followed(self, histories: Sequence[NDArray[np.integer]]) -> NDArray[np.float32]:
        """Return zeros: nothing is counted beside what tokens say."""
        return np.zeros((len(histories), len(self.vectors)), dtype=np.float32)
