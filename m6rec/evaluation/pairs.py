"""Score labelled pairs and keep every probability. It knows no method and no screen."""

import time

import numpy as np

from m6rec.baselines.base import PairScorer
from m6rec.data.histories import Judgements
from m6rec.errors import DataError
from m6rec.evaluation.result import PairEvaluation


def evaluate_pairs(scorer: PairScorer, pairs: Judgements, *, num_bins: int = 15) -> PairEvaluation:
    """Score every pair once.

    Args:
        scorer: gives each pair the probability of a yes.
        pairs: held-out judgements.
        num_bins: bins of equal width in the calibration error.

    Returns:
        AUC, UAUC (mean over users with both labels), log loss, calibration error and Brier score, with what they were
        made from.

    Raises:
        DataError: no pairs, or scores of the wrong shape or that are no probabilities.
    """
    if not len(pairs):
        raise DataError(f"got no pairs to evaluate {scorer.name!r} on, expected at least one judgement")
    started = time.perf_counter()
    probabilities = np.asarray(scorer.score_pairs(pairs), np.float32)
    if probabilities.shape != (len(pairs),):
        raise DataError(f"{scorer.name!r} gave scores of shape {probabilities.shape}, expected ({len(pairs)},)")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DataError(f"{scorer.name!r} gave scores outside 0..1 (or NaN), expected probabilities: apply a sigmoid")
    protocol = {
        "pairs": len(pairs),
        "users": len(np.unique(pairs.users)),
        "positive_rate": float(pairs.labels.mean()),
        "without_history": int((pairs.lengths == 0).sum()),
    }
    seconds = time.perf_counter() - started
    return PairEvaluation(scorer.name, pairs.users, pairs.labels, probabilities, protocol, num_bins, seconds)
