"""Rate: how often an item was a yes. It knows nothing of the user."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Judgements


@dataclass(frozen=True)
class RateConfig:
    """Settings of :class:`Rate`."""

    strength: float = 5.0
    """Pseudo-judgements at the overall rate that each item starts with; changes results."""


class Rate:
    """Scores a pair by the item's smoothed positive rate in training.

    ``(positives + strength * overall rate) / (judgements + strength)``; an unseen item has the overall rate.

    **Source:** Richardson, Dominowska and Ragno, Predicting clicks, 2007, equation 2 (smoothed rate).
    """

    name = "rate"
    Config = RateConfig
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {"strength": (1.0, 2.0, 5.0, 10.0, 20.0)}

    def __init__(self, config: RateConfig | None = None) -> None:
        self.config = config or RateConfig()

    def fit_pairs(self, train: Judgements, valid: Judgements | None = None) -> None:
        """Count each item's judgements; ``valid`` is not used."""
        overall = float(train.labels.mean()) if len(train) else 0.5
        positives = np.bincount(train.items, train.labels, minlength=train.history.num_items)
        judged = np.bincount(train.items, minlength=train.history.num_items)
        rates = (positives + self.config.strength * overall) / np.maximum(judged + self.config.strength, 1e-9)
        self._rates = rates.astype(np.float32)

    def score_pairs(self, pairs: Judgements) -> NDArray[np.float32]:
        """Return ``[num_pairs]`` the rate of each pair's item."""
        return self._rates[pairs.items]
