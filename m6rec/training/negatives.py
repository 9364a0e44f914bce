"""Which of the mined items are sure to be wrong answers, and which of those a step compares. Knows no model."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Rule = Literal["none", "absolute", "quantile", "relative"]


def sure_negatives(probabilities: Floats, ids: NDArray[np.int32], rule: Rule, threshold: float) -> NDArray[np.bool_]:
    """Return ``[num_lists, depth]``: the mined items that the ranker is sure nobody wanted.

    Args:
        probabilities: ``[num_lists, 1 + depth]`` the ranker's, the positive first.
        ids: ``[num_lists, 1 + depth]`` items, -1 = none (never kept).
        rule: ``absolute``: below ``threshold``; ``quantile``: among the lowest share ``threshold`` of its list;
            ``relative``: below ``threshold`` times the positive's; ``none``: everything that was mined.
        threshold: see there.

    Source: RocketQA section 3.2 (absolute, 0.1 of a calibrated ranker); NV-Retriever (2407.15831), TopK-PercPos
        (relative, .95). Differs: a click-trained ranker's probabilities are small everywhere, so that the place in the
        user's own list is the default.

    >>> given, ids = np.array([[0.4, 0.3, 0.1, 0.2]], np.float32), np.array([[9, 1, 2, 3]], np.int32)
    >>> [sure_negatives(given, ids, rule, 0.5).astype(int)[0].tolist() for rule in ("none", "quantile", "relative")]
    [[1, 1, 1], [0, 1, 0], [0, 1, 0]]
    """
    mined, real = probabilities[:, 1:], ids[:, 1:] >= 0
    if rule == "none":
        return real
    if rule == "absolute":
        return real & (mined < threshold)
    if rule == "relative":
        return real & (mined < threshold * probabilities[:, :1]) & (ids[:, :1] >= 0)
    order = np.where(real, mined, np.inf).argsort(axis=1, kind="stable").argsort(axis=1)
    return real & (order < np.floor(threshold * real.sum(1, keepdims=True)))


def draw(
    kept: Bool[Tensor, "lists depth"], ids: Int[Tensor, "lists depth"], num: int, num_items: int
) -> Int[Tensor, "lists num"]:
    """Return ``num`` of the items that are kept, at random; where there are fewer, any items of the catalogue.

    Draws from torch's global generator, which the training loop seeds by the step.

    Source: RocketQA section 3.2. Differs: topped up from the whole catalogue, where RocketQA takes the ranks below
        those that it has scored.
    """
    keys = torch.rand(kept.shape).masked_fill(~kept, -1.0)
    best, places = keys.topk(min(num, kept.shape[1]), dim=1)
    chosen = torch.randint(num_items, (len(kept), num))
    drawn = best >= 0
    chosen[:, : drawn.shape[1]] = torch.where(drawn, ids.long().gather(1, places), chosen[:, : drawn.shape[1]])
    return chosen
