"""What the loop asks now and then: how good the weights are on what was held out for it.

Knows how each kind of task is judged; does not know recipes, runs or the loop.
"""

import numpy as np
from numpy.typing import NDArray

from m6rec.backbones.base import Backbone
from m6rec.data.store import Dataset
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.pairs import evaluate_pairs
from m6rec.tasks.base import Task
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.retrieval.base import Retriever
from m6rec.training.run import Evaluate

VALIDATION_USERS = 4000
# A pair costs a pass over words: some thousand settle which weights are better.
VALIDATION_PAIRS = 4000
VALIDATION_EXAMPLES = 1000


def validator(task: Task, backbone: Backbone, dataset: Dataset, seed: int) -> Evaluate | None:
    """Return step -> validation figures, on a seeded sample of what was held out for it; ``None`` = nothing was."""
    rng = np.random.default_rng(seed)
    if isinstance(task, Ranking):
        pairs = task.pairs("valid")
        sample = pairs.take(_some_users(pairs.users, rng, VALIDATION_PAIRS))
        if not len(sample):
            return None
        return lambda _: evaluate_pairs(RankingScorer(task, backbone, "valid"), sample).means()
    if not isinstance(task, Retriever):
        return _own_figures(task, backbone, seed)
    queries = dataset.histories().queries("valid")
    chosen = queries.take(np.sort(rng.permutation(len(queries))[:VALIDATION_USERS]))
    if not len(chosen):
        return None
    return lambda _: evaluate(task.scorer(backbone), chosen, seed=seed).means()


def _own_figures(task: Task, backbone: Backbone, seed: int) -> Evaluate | None:
    """Return the task's own measure on validation; ``None`` = nothing is held out for it."""
    # One example tells whether there are any.
    if task.measure(backbone, "valid", at_most=1, seed=seed) is None:
        return None
    return lambda _: task.measure(backbone, "valid", VALIDATION_EXAMPLES, seed) or {}


def _some_users(users: NDArray[np.int32], rng: np.random.Generator, at_most: int) -> NDArray[np.int64]:
    """Return the rows of whole users, drawn until they have ``at_most`` rows together."""
    names, counts = np.unique(users, return_counts=True)
    order = rng.permutation(len(names))
    kept = np.cumsum(counts[order]) - counts[order] < at_most
    return np.flatnonzero(np.isin(users, names[order[kept]]))
