"""Where users meet items: one vector an item, one a user, counted links on top. Knows no backbone and no loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.indexes import INDEXES
from m6rec.indexes.base import Index
from m6rec.tasks.retrieval.neighbours import Kin, Links, NeighbourConfig, boost_for_share, sharpen


@dataclass(frozen=True)
class ItemSpace:
    """A catalogue as an index wants it.

    An inner product of a user and an item is learnt score + weight x text likeness + the boost of a new item; the
    co-occurrence term comes on top, because it is sparse.

    Args:
        learnt: ``[items, dim]`` vectors of length one.
        texts: ``[items, width]`` text vectors of length one.
        boost: ``[items]`` what is added to an item's score.
        kin: from whom items without training events inherit.
        links: what followed what in training.
        temperature: of the learnt score.
        cooccurrence: weight of the links.
        text: weight of the text likeness.
        config: window and decay.
    """

    learnt: Float[Tensor, "items dim"]
    texts: Float[Tensor, "items width"]
    boost: Float[Tensor, " items"]
    kin: Kin
    links: Links
    temperature: float
    cooccurrence: float
    text: float
    config: NeighbourConfig

    @property
    def vectors(self) -> Float[Tensor, "items total"]:
        """The items' vectors, for an index."""
        return torch.cat([self.learnt, self.texts, self.boost[:, None]], dim=1)

    def index(self, inner: str, places: NDArray[np.integer]) -> Index:
        """Return an index of the shelf over some items."""
        index: Index = INDEXES.load(inner)(dim=self.rows.shape[1])
        index.add(places, self.rows[places])
        return index

    @cached_property
    def rows(self) -> NDArray[np.float32]:
        """The items' vectors in memory, made once."""
        rows: NDArray[np.float32] = self.vectors.cpu().numpy()
        return rows

    def scores(self, user: Float[Tensor, " total"], places: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return a user's inner products with some items."""
        found: NDArray[np.float32] = self.rows[places] @ user.cpu().numpy()
        return found

    def users(
        self, states: Float[Tensor, "users dim"], profiles: Float[Tensor, "users width"]
    ) -> Float[Tensor, "users total"]:
        """Return the users' vectors, for an index.

        Args:
            states: learnt user vectors of length one.
            profiles: as :meth:`profiles` gives them.
        """
        ones = torch.ones_like(states[:, :1])
        return torch.cat([states / self.temperature, self.text * profiles, ones], dim=1)

    def profiles(
        self, last: Int[Tensor, "users window"], texts: Float[Tensor, "segments width"] | None = None
    ) -> Float[Tensor, "users width"]:
        """Return the decayed sum of the last events' text vectors.

        Args:
            last: segment numbers, newest first, -1 = none.
            texts: vectors that they point into; default: the items'.
        """
        texts = self.texts if texts is None else texts
        if not len(texts):
            return texts.new_zeros(len(last), texts.shape[1])
        decay = self.config.decay ** torch.arange(last.shape[1], device=texts.device, dtype=texts.dtype)
        kept = (last >= 0).to(texts.dtype) * decay
        return (texts[last.clamp(min=0)] * kept[..., None]).sum(1)

    def followers(self, histories: Sequence[NDArray[np.integer]]) -> NDArray[np.float32]:
        """Return ``[num_users, num_items]`` the unweighted co-occurrence term; never negative.

        Args:
            histories: catalogue positions, oldest first, -1 = no item.
        """
        return sharpen(self.kin.inherit(self.links.follow(histories, len(self.learnt), self.config)))

    def followed(self, histories: Sequence[NDArray[np.integer]]) -> NDArray[np.float32]:
        """Return ``[num_users, num_items]`` the co-occurrence term as it is added to the scores."""
        return np.float32(self.cooccurrence) * self.followers(histories)

    def boosted(
        self,
        groups: Sequence[tuple[NDArray[np.bool_], float]],
        trained: NDArray[np.bool_],
        states: Float[Tensor, "users dim"],
        last: Int[Tensor, "users window"],
    ) -> Float[Tensor, " items"]:
        """Return the boost that gives items without training events their share of a sample of users' next events.

        Args:
            groups: ``[items]`` members, and the share that the group is expected to get; groups are disjoint.
            trained: ``[items]`` whom they are held against.
            states: the sample's learnt vectors.
            last: the sample's last items, newest first, -1 = none.
        """
        boost = torch.zeros_like(self.boost)
        groups = [(members, share) for members, share in groups if members.any()]
        if not groups:
            return boost
        histories = [row[row >= 0][::-1] for row in last.cpu().numpy()]
        scores = (self.users(states, self.profiles(last)) @ self.vectors.T).cpu().numpy()
        scores += self.followed(histories)
        for members, share in groups:
            boost[torch.from_numpy(members)] = boost_for_share(scores[:, trained], scores[:, members], share)
        return boost


def last_segments(segments: Sequence[NDArray[np.int64]], window: int) -> Int[Tensor, "users window"]:
    """Return the last ``window`` numbers of each row, newest first, -1 where there are fewer.

    >>> last_segments([np.array([4, 5, 6])], 2).tolist()
    [[6, 5]]
    """
    last = torch.full((len(segments), window), -1)
    for row, numbers in enumerate(segments):
        newest = numbers[::-1][:window]
        last[row, : len(newest)] = torch.from_numpy(newest.copy())
    return last
