"""A trained ranking task as evaluation asks it: labelled pairs, and lists of candidates. Knows no training."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.backbones.base import Backbone
from m6rec.backbones.scenes import score_in_scenes
from m6rec.data.histories import Judgements, Queries
from m6rec.tasks.ranking.task import Ranking


class RankingScorer:
    """Scores labelled pairs and candidate lists for evaluation.

    Args:
        task: trained, over the dataset that is evaluated.
        backbone: tuned.
        split: what is predicted, which says what may be known.
        name: row name in reports.
    """

    def __init__(self, task: Ranking, backbone: Backbone, split: Literal["valid", "test"], name: str = "ours") -> None:
        self.task, self.backbone, self.split, self.name = task, backbone, split, name

    def score_pairs(self, pairs: Judgements) -> NDArray[np.float32]:
        """Return ``[num_pairs]`` probabilities."""
        if pairs.scenes is None:
            return self.task.score_pairs(self.backbone, pairs, self.split)
        return score_in_scenes(
            self.backbone,
            pairs.scenes,
            lambda active, rows: self.task.score_pairs(active, pairs.take(rows), self.split),
        )

    def score_candidates(self, queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return ``[num_queries, n]`` scores of candidates; ``-1`` = none, scored minus infinity."""
        rows, columns = np.nonzero(candidates >= 0)
        users = queries.users[rows]
        pairs = Judgements(
            history=queries.history,
            users=users,
            items=candidates[rows, columns],
            labels=np.zeros(len(rows), dtype=np.float32),
            lengths=np.diff(queries.history.offsets)[users],
            times=None if queries.times is None else queries.times[rows],
            rows=None if queries.rows is None else queries.rows[rows],
        )
        scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
        scores[rows, columns] = self.score_pairs(self.task.placed(pairs))
        return scores
