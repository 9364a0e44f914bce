"""What followed what: counted transitions between items, and what a new item inherits from items that read like it.

A direct term of the retrieval score, beside the learnt vectors. Knows counts and text vectors; no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m6rec.data.histories import Histories

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NeighbourConfig:
    """Settings of the counted terms; all change results."""

    cooccurrence: float | None = None
    """Weight of what followed the last items in other histories; 0 = off, null = chosen on validation."""
    text: float | None = None
    """Weight of the likeness of an item's text to the last events' texts; 0 = off, null = chosen on validation."""
    window: int = 5
    """Events after an item that count as having followed it, and last events that are looked up."""
    decay: float = 0.6
    """Weight of each event further back."""
    kin: int = 5
    """Items alike in text from which an item without training events inherits; 0 = nothing is inherited."""
    new_share: float | None = None
    """Share of next events that is expected to go to items without training events; null = as validation saw it for
    items that were there, their share of the catalogue for items added later; 0 = scores stay as they are."""


class Links:
    """Normalised counts of what followed what, in compressed rows.

    Args:
        offsets: ``[num_items + 1]`` int64.
        items: ``[num_links]`` int32 followers.
        weights: ``[num_links]`` float32.
    """

    def __init__(self, offsets: NDArray[np.int64], items: NDArray[np.int32], weights: Floats) -> None:
        self.offsets, self.items, self.weights = offsets, items, weights

    @classmethod
    def count(cls, train: Histories, window: int) -> "Links":
        """Count training events: a follower ``k`` events later adds ``1/k``; rows and columns are damped by their root.

        Source: the normalisation is item-kNN's (Deshpande and Karypis, 2004), on ordered pairs.
        """
        real = train.select(train.items >= 0)
        users, items, num_items = real.users, real.items.astype(np.int64), train.num_items
        keys, values = [], []
        for lag in range(1, window + 1):
            same = users[:-lag] == users[lag:]
            keys.append(items[:-lag][same] * num_items + items[lag:][same])
            values.append(np.full(int(same.sum()), 1.0 / lag))
        pairs, back = np.unique(np.concatenate(keys), return_inverse=True)
        counts = np.bincount(back, weights=np.concatenate(values), minlength=len(pairs))
        rows, columns = pairs // num_items, pairs % num_items
        out = np.bincount(rows, weights=counts, minlength=num_items)
        into = np.bincount(columns, weights=counts, minlength=num_items)
        weights = counts / np.sqrt(out[rows] * into[columns])
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_items))])
        return cls(offsets.astype(np.int64), columns.astype(np.int32), weights.astype(np.float32))

    def follow(self, histories: Sequence[NDArray[np.integer]], num_items: int, config: NeighbourConfig) -> Floats:
        """Return ``[num_histories, num_items]`` how strongly each item follows the last ones.

        Args:
            histories: catalogue positions, oldest first; -1 and unknown positions are skipped.
            num_items: items on the catalogue now (later ones have no links).
        """
        scores = np.zeros((len(histories), num_items), dtype=np.float32)
        for row, history in enumerate(histories):
            known = history[(history >= 0) & (history < len(self.offsets) - 1)]
            for back, item in enumerate(known[::-1][: config.window].tolist()):
                span = slice(self.offsets[item], self.offsets[item + 1])
                scores[row, self.items[span]] += config.decay**back * self.weights[span]
        return scores

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays by name, to be saved."""
        return {
            "link_offsets": torch.from_numpy(self.offsets),
            "link_items": torch.from_numpy(self.items),
            "link_weights": torch.from_numpy(self.weights),
        }

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Links":
        """Return links from saved arrays."""
        return cls(*(tensors[f"link_{name}"].numpy() for name in ("offsets", "items", "weights")))


@dataclass(frozen=True)
class Kin:
    """For each item without training events, the trained ones that read most like it.

    Args:
        items: ``[num_new]`` int64 positions of the new items.
        parents: ``[num_new, kin]`` int64 positions of trained items.
        shares: ``[num_new, kin]`` float32 weights that sum to one.
    """

    items: NDArray[np.int64]
    parents: NDArray[np.int64]
    shares: Floats

    @classmethod
    def find(cls, texts: Tensor, trained: NDArray[np.bool_], kin: int) -> "Kin":
        """Find each new item's nearest trained items.

        Args:
            texts: ``[num_items, width]`` text vectors of length one.
            trained: ``[num_items]`` has training events.
            kin: how many.
        """
        new, old = np.flatnonzero(~trained), np.flatnonzero(trained)
        kin = min(kin, len(old))
        if not len(new) or not kin:
            return cls(new[:0], np.zeros((0, 0), dtype=np.int64), np.zeros((0, 0), dtype=np.float32))
        parents, shares = [], []
        for start in range(0, len(new), 1024):
            likeness, places = (texts[new[start : start + 1024]] @ texts[old].T).topk(kin, dim=1)
            weight = likeness.clamp(min=1e-6)
            parents.append(old[places.numpy()])
            shares.append((weight / weight.sum(1, keepdim=True)).numpy())
        return cls(new, np.concatenate(parents), np.concatenate(shares))

    def inherit(self, scores: Floats) -> Floats:
        """Write into each new item's column the weighted mean of its parents' columns; return ``scores``."""
        if self.parents.size:
            # Parent by parent: all at once would hold a table of users x new items x kin.
            total = np.zeros((len(scores), len(self.items)), dtype=np.float32)
            for parents, shares in zip(self.parents.T, self.shares.T, strict=True):
                total += scores[:, parents] * shares
            scores[:, self.items] = total
        return scores


def sharpen(scores: Floats) -> Floats:
    """Return log(1 + 100 s): the first link says most, further ones add less."""
    return np.log1p(100.0 * scores)


def boost_for_share(old: Floats, new: Floats, share: float) -> float:
    """Return what to add to the scores of new items so that they get ``share`` of the probability.

    A tower that was never rewarded for a new item places it too low; how much is seen from the scores alone, no label
    is needed.

    Args:
        old: ``[num_users, num_old]`` scores in logits.
        new: ``[num_users, num_new]`` scores in logits.
        share: wanted mean over users of the softmax's mass on new items.

    Source: prior matching under label shift (Saerens et al., 2002), with one class of new items.

    >>> round(boost_for_share(np.zeros((1, 3)), np.zeros((1, 1)) - 2.0, 0.25), 3)
    2.0
    """
    if not new.size or not old.size or not 0 < share < 1:
        return 0.0
    top = np.maximum(old.max(1), new.max(1))[:, None].astype(np.float64)
    odds = np.exp(new - top).sum(1) / np.exp(old - top).sum(1)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        mass = float((1 / (1 + 1 / np.maximum(odds * np.exp(middle), 1e-300))).mean())
        low, high = (middle, high) if mass < share else (low, middle)
    return (low + high) / 2
