"""Train until validation stops rising, and say for how long. It knows no method.

The score to raise is made on held-out events that the caller chose; nothing here ever meets a test event.
"""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from m6rec.data.histories import Histories, Queries
from m6rec.metrics.ranking import ndcg, query_of

logger = logging.getLogger(__name__)


@dataclass
class TrainingLog:
    """How a training went; it goes into reports, because an undertrained baseline flatters everyone else.

    Args:
        metric: what was watched.
        values: the metric after each epoch.
        losses: mean training loss of each epoch.
        best_epoch: 1-based epoch whose weights were kept.
        stopped: why it ended: ``"plateau"``, or ``"max_epochs"`` (then it may still have been rising).
    """

    metric: str
    values: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = "max_epochs"


def train_until_plateau(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    run_epoch: Callable[[], float],
    validate: Callable[[], float],
    *,
    metric: str,
    max_epochs: int,
    patience: int,
    decays: int,
    decay: float = 0.2,
) -> TrainingLog:
    """Run epochs until ``validate`` stops rising; leave the best weights in ``network``.

    A plateau is ``patience`` epochs without a new best. The first ``decays`` plateaus go back to the best weights and
    multiply the learning rate by ``decay``; the next one ends the training.

    Args:
        network: what is trained.
        optimizer: over its parameters.
        run_epoch: one pass over the training data; returns the mean loss.
        validate: the score to raise; where it is NaN (nothing could be held out) minus the training loss stands in.
        metric: its name, for the log.
        max_epochs: upper bound on epochs.
        patience: epochs without a new best that make a plateau.
        decays: plateaus to survive.
        decay: factor on the learning rate at each.

    Returns:
        The log of the training.
    """
    log, best, waited = TrainingLog(metric), copy.deepcopy(network.state_dict()), 0
    for epoch in range(1, max_epochs + 1):
        network.train()
        log.losses.append(run_epoch())
        network.eval()
        value = validate()
        log.values.append(-log.losses[-1] if math.isnan(value) else value)
        logger.info("epoch %d: loss %.4f, valid %s %.4f", epoch, log.losses[-1], metric, log.values[-1])
        if not log.best_epoch or log.values[-1] > log.values[log.best_epoch - 1]:
            log.best_epoch, best, waited = epoch, copy.deepcopy(network.state_dict()), 0
            continue
        waited += 1
        if waited < patience:
            continue
        if not decays:
            log.stopped = "plateau"
            break
        decays, waited = decays - 1, 0
        network.load_state_dict(best)
        for group in optimizer.param_groups:
            group["lr"] *= decay
    network.load_state_dict(best)
    network.eval()
    logger.info("stopped by %s after %d epochs, best %d", log.stopped, len(log.values), log.best_epoch)
    return log


def hold_out_last(train: Histories, share: float, limit: int, seed: int) -> tuple[Histories, Queries]:
    """Hold out the last training event of some users, as questions that a training may stop on.

    Args:
        train: training events.
        share: of the users with at least 3 events that have an item.
        limit: at most this many users.
        seed: of the choice of users.

    Returns:
        The rest; the questions, whose history is the rest.
    """
    real = train.select(train.items >= 0)
    able = np.flatnonzero(np.diff(real.offsets) >= 3)
    count = min(limit, max(1, round(share * len(able)))) if len(able) else 0
    users = np.sort(np.random.default_rng(seed).choice(able, count, replace=False)).astype(np.int32)
    last = real.offsets[users.astype(np.int64) + 1] - 1
    keep = np.ones(real.num_events, dtype=np.bool_)
    keep[last] = False
    rest = real.select(keep)
    return rest, Queries(rest, users, np.arange(count + 1, dtype=np.int64), real.items[last])


def sample_queries(queries: Queries, limit: int, seed: int) -> Queries:
    """Return at most ``limit`` of the queries, drawn once, so that epochs are compared on the same ones."""
    if len(queries) <= limit:
        return queries
    chosen = np.random.default_rng(seed).choice(len(queries), limit, replace=False)
    return queries.take(np.sort(chosen))


def mean_ndcg(
    score: Callable[[Queries], NDArray[np.float32]], queries: Queries, cutoff: int = 10, batch_size: int = 256
) -> float:
    """Return mean NDCG over the full catalogue with the history masked, ties counted half.

    The evaluator proper sits above baselines; this is the plain number that stops a training or picks a setting.
    """
    ranks = []
    for batch in queries.batches(batch_size):
        part = queries.take(batch)
        scores = np.array(score(part), np.float32)
        places, events = part.history.events_of(part.users)
        items = part.history.items[events]
        scores[places[items >= 0], items[items >= 0]] = -np.inf
        rows = query_of(part.target_offsets)
        own = scores[rows, part.targets][:, None]
        ranks.append(1 + (scores[rows] > own).sum(1) + ((scores[rows] == own).sum(1) - 1) // 2)
    return float(ndcg(np.concatenate(ranks), queries.target_offsets, cutoff).mean()) if ranks else float("nan")
