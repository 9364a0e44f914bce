"""Rank the whole catalogue for every query and keep what each query got.

Every recommender, ours or a baseline, goes through :func:`evaluate`; what comes out holds ranks and lists per query, so
that intervals, slices and paired comparisons need no second run. It knows no method, no file and no screen.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m6rec.baselines.base import Recommender
from m6rec.data.candidates import Candidates
from m6rec.data.histories import Histories, Queries
from m6rec.errors import ConfigError, DataError
from m6rec.evaluation.ordering import EXCLUDED, Keys, order_keys, top
from m6rec.evaluation.result import Evaluation
from m6rec.metrics.ranking import NOT_FOUND, query_of

#: Scores held at once: 16 MB of float32, some 100 MB with keys and copies.
SCORES_AT_ONCE = 1 << 22


@runtime_checkable
class CandidateScorer(Protocol):
    """A recommender that can score a few items per query without scoring the catalogue (a cross-encoder)."""

    def score_candidates(self, queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return ``[num_queries, n]`` scores of ``candidates`` (``[num_queries, n]`` item ids, ``-1`` = none)."""
        ...


def evaluate(
    recommender: Recommender,
    queries: Queries,
    cutoffs: Sequence[int] = (5, 10, 20),
    *,
    candidates: Candidates | NDArray[np.integer] | None = None,
    include_targets: bool = True,
    mask_history: bool = True,
    train: Histories | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Evaluation:
    """Rank items for every query and find the held-out ones.

    Args:
        recommender: scores the catalogue; one that has ``score_candidates`` is asked only for the candidates.
        queries: what was held out and what may be known.
        cutoffs: list lengths of the metrics.
        candidates: what to rank instead of the whole catalogue: an object of ``m6rec.data.candidates``, or
            ``[num_queries, n]`` item ids (``-1`` = none). The metrics' names then say so: ``ndcg@10[sampled=100]``.
        include_targets: the targets join the candidates (sampled negatives). False: the candidates are ranked as given
            and a target that is not among them is a miss (re-ranking of retrieved lists); an array is then named
            ``[given=100]``.
        mask_history: never recommend what the user's history holds; a target that it holds is a miss, and counted in
            the protocol as ``unreachable_targets``.
        train: training events, for slices and novelty; by default the training events in ``queries.history``.
        seed: of the random key that breaks ties.
        batch_size: queries scored at once; by default as many as keep memory bounded.

    Returns:
        Per-query ranks and lists.

    Raises:
        ConfigError: no cutoff, or one below 1.
        DataError: no queries, NaN scores, or scores or candidates of the wrong shape.
    """
    if not cutoffs or min(cutoffs) < 1:
        raise ConfigError(f"got cutoffs {tuple(cutoffs)}, expected at least one, each from 1 up")
    if not len(queries):
        raise DataError(f"got no queries to evaluate {recommender.name!r} on, expected at least one held-out event")
    queries = _distinct_targets(queries)
    chosen, suffix = _chosen(queries, candidates, include_targets)
    size = batch_size or max(1, SCORES_AT_ONCE // max(1, _scores_per_query(recommender, queries, chosen)))
    started, length = time.perf_counter(), max(cutoffs)
    parts = [
        _rank(recommender, queries.take(batch), None if chosen is None else chosen[batch], length, mask_history, seed)
        for batch in queries.batches(size)
    ]
    ranks, lists = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    history = queries.history
    return Evaluation(
        name=recommender.name,
        users=queries.users,
        offsets=queries.target_offsets,
        targets=queries.targets,
        ranks=ranks,
        lists=lists,
        history_lengths=np.bincount(_history_pairs(queries)[0], minlength=len(queries)),
        item_counts=_item_counts(history.select(history.splits == 0) if train is None else train),
        cutoffs=tuple(sorted(cutoffs)),
        suffix=suffix,
        protocol=_protocol(queries, ranks, suffix, mask_history, seed),
        seconds=time.perf_counter() - started,
    )


def _scores_per_query(recommender: Recommender, queries: Queries, chosen: NDArray[np.int32] | None) -> int:
    if chosen is None or not isinstance(recommender, CandidateScorer):
        return queries.history.num_items
    return chosen.shape[1]


def _protocol(queries: Queries, ranks: NDArray[np.int64], suffix: str, mask_history: bool, seed: int) -> dict[str, Any]:
    return {
        "candidates": suffix.strip("[]") or "full catalogue",
        "history_masked": mask_history,
        "ties": "seeded random",
        "tie_seed": seed,
        "queries": len(queries),
        "targets": len(ranks),
        "unreachable_targets": int((ranks == NOT_FOUND).sum()),
        "items": queries.history.num_items,
    }


def _rank(
    recommender: Recommender,
    queries: Queries,
    candidates: NDArray[np.int32] | None,
    length: int,
    mask_history: bool,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return one batch's ranks of targets, and its lists of ``length`` items."""
    if candidates is None:
        keys = order_keys(_catalogue_scores(recommender, queries), queries.users, _all_items(queries), seed)
        if mask_history:
            keys[_history_pairs(queries)] = EXCLUDED
        columns = queries.targets.astype(np.int64)
        lists = top(keys, length)
    else:
        keys = order_keys(_candidate_scores(recommender, queries, candidates), queries.users, candidates, seed)
        keys[candidates < 0] = EXCLUDED
        if mask_history:
            keys[_seen(queries, candidates)] = EXCLUDED
        columns = _columns(queries, candidates)
        best = top(keys, length)
        lists = np.where(best < 0, -1, np.take_along_axis(candidates, np.maximum(best, 0), axis=1))
    if lists.shape[1] < length:
        lists = np.pad(lists, ((0, 0), (0, length - lists.shape[1])), constant_values=-1)
    return _ranks(keys, query_of(queries.target_offsets), columns), lists.astype(np.int32)


def _ranks(keys: Keys, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    own = np.where(columns < 0, EXCLUDED, keys[rows, np.maximum(columns, 0)])
    # One row of keys per target would be large where a query has many targets: go query by query then.
    if len(rows) == len(keys):
        higher = (keys > own[:, None]).sum(1)
    else:
        ordered = np.sort(keys, axis=1)
        higher = np.array(
            [keys.shape[1] - np.searchsorted(ordered[r], k, "right") for r, k in zip(rows, own, strict=True)]
        )
    return np.where(own == EXCLUDED, NOT_FOUND, higher + 1).astype(np.int64)


def _all_items(queries: Queries) -> NDArray[np.int64]:
    return np.arange(queries.history.num_items)


def _catalogue_scores(recommender: Recommender, queries: Queries) -> NDArray[np.float32]:
    scores = np.asarray(recommender.score(queries))
    expected = (len(queries), queries.history.num_items)
    if scores.shape != expected:
        raise DataError(f"{recommender.name!r} gave scores of shape {scores.shape}, expected {expected}: every item")
    return scores


def _candidate_scores(recommender: Recommender, queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
    if not isinstance(recommender, CandidateScorer):
        return np.take_along_axis(_catalogue_scores(recommender, queries), np.maximum(candidates, 0), axis=1)
    scores = np.asarray(recommender.score_candidates(queries, candidates))
    if scores.shape != candidates.shape:
        raise DataError(f"{recommender.name!r} gave scores of shape {scores.shape}, expected {candidates.shape}")
    return scores


def _history_pairs(queries: Queries) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return (row, item) of everything in the queries' histories."""
    places, events = queries.history.events_of(queries.users)
    items = queries.history.items[events]
    return places[items >= 0], items[items >= 0]


def _seen(queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return ``[num_queries, n]``: the candidate is in the user's history."""
    rows, items = _history_pairs(queries)
    num_items = queries.history.num_items
    pairs = np.arange(len(queries))[:, None] * num_items + candidates
    return np.isin(pairs, rows * num_items + items) & (candidates >= 0)


def _columns(queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return ``[num_targets]`` the column of each target among its query's candidates, ``-1`` = not there."""
    found = candidates[query_of(queries.target_offsets)] == queries.targets[:, None]
    return np.where(found.any(1), found.argmax(1), -1)


def _chosen(
    queries: Queries, candidates: Candidates | NDArray[np.integer] | None, include_targets: bool
) -> tuple[NDArray[np.int32] | None, str]:
    """Return the candidates of each query (``None`` = the whole catalogue), and how the metrics' names say so."""
    if candidates is None:
        return None, ""
    if isinstance(candidates, Candidates):
        return _candidate_sets(queries, candidates.of(queries), include_targets), f"[{candidates.name}]"
    array = np.asarray(candidates)
    sets = _candidate_sets(queries, array, include_targets)
    return sets, f"[{'sampled' if include_targets else 'given'}={array.shape[1]}]"


def _candidate_sets(queries: Queries, candidates: NDArray[Any], include_targets: bool) -> NDArray[np.int32]:
    """Return distinct candidates per query (repeats become ``-1``), with the targets in front where asked for."""
    if candidates.ndim != 2 or len(candidates) != len(queries):
        raise DataError(f"got candidates of shape {candidates.shape}, expected ({len(queries)}, n): one row a query")
    if candidates.size and not (candidates.min() >= -1 and candidates.max() < queries.history.num_items):
        raise DataError(f"got a candidate outside the catalogue, expected -1 or 0..{queries.history.num_items - 1}")
    if include_targets:
        rows = query_of(queries.target_offsets)
        place = np.arange(len(rows)) - queries.target_offsets[rows]
        targets = np.full((len(queries), place.max() + 1), -1, dtype=np.int64)
        targets[rows, place] = queries.targets
        candidates = np.concatenate([targets, candidates], axis=1)
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    distinct = np.empty_like(ordered)
    np.put_along_axis(distinct, order, ordered, axis=1)
    return distinct.astype(np.int32)


def _distinct_targets(queries: Queries) -> Queries:
    """Return the queries with each target once (an item bought twice is one right answer)."""
    rows = query_of(queries.target_offsets)
    _, first = np.unique(rows * queries.history.num_items + queries.targets, return_index=True)
    if len(first) == len(rows):
        return queries
    first.sort()
    counts = np.bincount(rows[first], minlength=len(queries))
    return replace(
        queries,
        target_offsets=np.r_[0, np.cumsum(counts)].astype(np.int64),
        targets=queries.targets[first],
        target_values=None if queries.target_values is None else queries.target_values[first],
    )


def _item_counts(train: Histories) -> NDArray[np.int64]:
    return np.bincount(train.items[train.items >= 0], minlength=train.num_items)
