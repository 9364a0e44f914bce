"""Beyond accuracy: how much of the catalogue the lists reach, and how unexpected what they hold is.

Plain numpy, usable alone on anyone's lists. It knows no model and no user.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def coverage(lists: NDArray[Any], num_items: int) -> float:
    """Return the share of the catalogue that stands in at least one list.

    Args:
        lists: ``[num_queries, length]`` item ids; ``-1`` = none.
        num_items: size of the catalogue.

    **Source:** Herlocker et al., Evaluating collaborative filtering recommender systems, 2004, section 4.3 (catalogue
    coverage of what is recommended).

    >>> coverage(np.array([[0, 1], [1, -1]]), 4)
    0.5
    """
    return len(np.unique(lists[lists >= 0])) / num_items if num_items else float("nan")


def novelty(lists: NDArray[Any], counts: NDArray[Any]) -> float:
    """Return the mean surprise in bits, ``-log2 p(item)``, of what was recommended.

    Args:
        lists: ``[num_queries, length]`` item ids; ``-1`` = none.
        counts: ``[num_items]`` training events of each item; ``p`` is add-one smoothed, so that an item never seen has
            a finite surprise.

    Returns:
        Mean over the recommended items; NaN where there are none.

    **Source:** Zhou et al., Solving the apparent diversity-accuracy dilemma of recommender systems, 2010 (surprisal).

    >>> round(novelty(np.array([[0], [1]]), np.array([3, 1])), 4)
    1.085
    """
    shown = lists[lists >= 0]
    if not len(shown):
        return float("nan")
    smoothed = np.asarray(counts, np.float64) + 1
    return float(-np.log2(smoothed[shown] / smoothed.sum()).mean())
