"""Where a recommender is good: popular and rare items, new items, new users, short and long histories.

It knows no recommender.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m6rec.evaluation.result import Evaluation
from m6rec.metrics.ranking import query_of


def slice_masks(
    evaluation: Evaluation, head_share: float = 0.2, edges: Sequence[int] = (1, 5, 10, 20, 50), few: int = 5
) -> dict[str, NDArray[np.bool_]]:
    """Return the slices as masks over targets.

    ``items=head`` are the most popular ``head_share`` of the items that have a training event, ``items=tail`` the other
    such items, ``items=new`` those without any; ``users=new`` have an empty history, ``users=few`` fewer than ``few``
    events; ``history=5-9`` and so on are lengths of the visible history.

    Args:
        evaluation: whose targets are sliced.
        head_share: of the items with training events.
        edges: where a new bucket of history lengths begins.
        few: see above.
    """
    counts, targets = evaluation.item_counts, evaluation.targets
    seen = np.flatnonzero(counts)
    by_popularity = seen[np.argsort(-counts[seen], kind="stable")]
    head = np.zeros(len(counts), dtype=np.bool_)
    head[by_popularity[: round(head_share * len(seen))]] = True
    lengths = evaluation.history_lengths[query_of(evaluation.offsets)]
    masks = {
        "items=head": head[targets],
        "items=tail": ~head[targets] & (counts[targets] > 0),
        "items=new": counts[targets] == 0,
        "users=new": lengths == 0,
        "users=few": lengths < few,
    }
    for low, high in itertools.pairwise([*edges, np.inf]):
        name = f"history={low}+" if high == np.inf else f"history={low}-{int(high) - 1}"
        masks[name] = (lengths >= low) & (lengths < high)
    return masks


def slices(
    evaluation: Evaluation, head_share: float = 0.2, edges: Sequence[int] = (1, 5, 10, 20, 50)
) -> dict[str, Evaluation]:
    """Return the evaluation of every slice that holds a target (see :func:`slice_masks`)."""
    masks = slice_masks(evaluation)
    return {name: evaluation.where(mask) for name, mask in masks.items() if mask.any()}
