"""Spreads a list over unlike items. Knows no user."""

import numpy as np
from numpy.typing import NDArray

from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import PlainStage


class Diversify(PlainStage):
    """Picks each next item for its score and against its likeness to those before it (maximal marginal relevance).

    **Source:** Carbonell and Goldstein, The use of MMR (SIGIR 1998).
    **Differs:** scores are brought to 0 to 1 within the list; likeness is that of the items' texts.
    """

    name = "diversify"
    kinds = ("recommend",)

    def wants(self, payload: Payload) -> bool:
        """Return whether a request asks for it."""
        asked = super().wants(payload) and payload["rung"].model and "answer" not in payload
        return asked and bool(payload["request"].get("diversity"))

    def size(self, payload: Payload) -> float:
        """Return the number of items that are wanted."""
        return float(payload.get("k", 10))

    def one(self, payload: Payload) -> Update:
        """Return the items that are wanted, in their new order."""
        catalog, found = self.models.recommender.catalog, payload["found"]
        places = [catalog.retrieval.catalogue.find(str(record["key"])) for record, _ in found]
        texts = catalog.space.texts[[place or 0 for place in places]].cpu().numpy()
        scores = np.array([score for _, score in found])
        order = marginal(scores, texts, float(payload["request"]["diversity"]), payload["k"])
        return {"found": [found[place] for place in order]}


def marginal(scores: NDArray[np.floating], vectors: NDArray[np.floating], diversity: float, k: int) -> list[int]:
    """Return the numbers of ``k`` items, each the best by ``(1 - diversity) score - diversity likeness``.

    Args:
        scores: ``[items]``.
        vectors: ``[items, width]`` of length one.
        diversity: 0 = by score alone, 1 = by unlikeness alone.
        k: how many.

    >>> marginal(np.array([3.0, 2.9, 1.0]), np.array([[1.0, 0], [1, 0], [0, 1]]), 0.6, 2)
    [0, 2]
    """
    spread = float(np.ptp(scores)) if len(scores) else 0.0
    worth = (scores - scores.min()) / spread if spread > 0 else np.zeros(len(scores))
    likeness, chosen = np.zeros(len(scores)), list[int]()
    for _ in range(min(k, len(scores))):
        gain = (1 - diversity) * worth - diversity * likeness
        gain[chosen] = -np.inf
        best = int(gain.argmax())
        chosen.append(best)
        likeness = np.maximum(likeness, vectors @ vectors[best])
    return chosen
