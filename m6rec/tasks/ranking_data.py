"""Labelled pairs as token trees: one trunk a stretch of history, one branch a pair. Knows no model and no loss."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.data.histories import Histories, Judgements, Split
from m6rec.data.statistics import CROSS_NAMES, ItemStatistics
from m6rec.text.batch import TokenBatch, branch_ends, collate
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer, TokenizedLayout

STATISTICS = (
    "popularity",
    "positive_rate",
    "user_rate",
    "category_rate",
    "category_count",
    "brand_count",
    "item_count",
)
NUM_FEATURES = 2 * len(STATISTICS)
ARRAYS = ("ids", "positions", "blocks", "branches", "segments")


@dataclass(frozen=True)
class Slate:
    """A stretch of one user's events, and the pairs that are judged along it.

    Args:
        user: whose.
        start: first event of the trunk.
        stop: end of the trunk.
        pairs: ``[num_branches]`` numbers of the pairs.
    """

    user: int
    start: int
    stop: int
    pairs: NDArray[np.int64]


def slates(pairs: Judgements, max_events: int, max_branches: int) -> list[Slate]:
    """Group pairs so that every one sees at least its last ``max_events // 2`` events, and each stands in one slate.

    Pairs of different scenes never share a slate.

    Args:
        pairs: labelled pairs.
        max_events: longest trunk in events.
        max_branches: most pairs a slate; memory only.
    """
    scenes = np.zeros(len(pairs), dtype=np.int64) if pairs.scenes is None else pairs.scenes.astype(np.int64)
    order = np.lexsort((pairs.lengths, scenes, pairs.users))
    step = max(1, max_events - max_events // 2)
    # Pairs of one user (and scene) whose visible histories end in the same stretch of `step` events share a trunk.
    stretch = np.maximum(0, np.ceil((pairs.lengths[order] - max_events) / step)).astype(np.int64)
    keys = np.stack([pairs.users[order].astype(np.int64), scenes[order], stretch])
    cuts = np.flatnonzero(np.any(np.diff(keys, axis=1) != 0, axis=0)) + 1
    result = []
    for group in np.split(order, cuts) if len(order) else []:
        user, longest = int(pairs.users[group[0]]), int(pairs.lengths[group].max())
        begin = int(pairs.history.offsets[user])
        for first in range(0, len(group), max_branches):
            result.append(
                Slate(user, begin + max(0, longest - max_events), begin + longest, group[first : first + max_branches])
            )
    return result


def features(numbers: Mapping[str, Sequence[float] | NDArray[np.float64]]) -> NDArray[np.float32]:
    """Return statistics as ``[pairs, NUM_FEATURES]`` numbers of order one: each value, and whether it is known.

    Percentages are centred, counts are logarithms, an unknown value is zero.
    """
    columns = []
    for name in STATISTICS:
        values = np.asarray(numbers[name], dtype=np.float64)
        scaled = np.log1p(np.maximum(values, 0)) if name.endswith("count") else values / 50.0 - 1.0
        columns += [np.nan_to_num(scaled), np.isfinite(values).astype(np.float64)]
    return np.stack(columns, axis=1).astype(np.float32)


class TreeWriter:
    """Renders and tokenises slates.

    Args:
        prompt: the task's order of segments.
        renderer: the domain's words.
        tokenizer: with the control tokens added.
        max_tokens: longest path through a tree.
    """

    def __init__(self, prompt: Prompt, renderer: Renderer, tokenizer: TextTokenizer, max_tokens: int) -> None:
        self.prompt, self.renderer, self.tokenizer = prompt, renderer, tokenizer
        self.max_tokens = min(max_tokens, prompt.budget_tokens)

    def tree(self, user: UserText, candidates: Sequence[Candidate]) -> TokenizedLayout:
        """Return one user's tree with a branch for each candidate."""
        return self.tokenizer.layout(self.prompt.layout(self.renderer, user, candidates), self.max_tokens)

    def trees(
        self,
        slates: Sequence[Slate],
        pairs: Judgements,
        statistics: Mapping[str, NDArray[np.float64]],
        event_record: Callable[[int], Mapping[str, Any]],
        user_record: Callable[[int], Mapping[str, Any]],
        texts: Sequence[str],
    ) -> Iterator[TokenizedLayout]:
        """Yield each slate's tree; items are ready-made words, shared by all users."""
        rows = pairs.history.rows
        for slate in slates:
            numbers = rows[slate.start : slate.stop] if rows is not None else range(slate.start, slate.stop)
            events = [event_record(int(row)) for row in numbers]
            first = slate.start - int(pairs.history.offsets[slate.user])
            candidates = [
                Candidate(
                    item=texts[pairs.items[pair]],
                    statistics={name: float(values[pair]) for name, values in statistics.items()},
                    events_seen=max(0, int(pairs.lengths[pair]) - first),
                )
                for pair in slate.pairs.tolist()
            ]
            yield self.tree(UserText(profile=user_record(slate.user), events=events), candidates)


@dataclass(frozen=True)
class RankingBatch:
    """Trees, and where each pair is read.

    Args:
        tokens: one tree a slate.
        rows: ``[pairs]`` tree of each pair.
        columns: ``[pairs]`` token of each pair: its ``[EOS]``.
        numbers: ``[pairs, features]`` the statistics as numbers.
        labels: ``[pairs]`` 0 or 1; zeros in inference.
    """

    tokens: TokenBatch
    rows: Int[Tensor, " pairs"]
    columns: Int[Tensor, " pairs"]
    numbers: Float[Tensor, "pairs features"]
    labels: Int[Tensor, " pairs"]

    def to(self, device: torch.device | str) -> "RankingBatch":
        """Return the batch on ``device``."""
        return RankingBatch(**{name: value.to(device) for name, value in vars(self).items()})


def ranking_batch(
    trees: Sequence[TokenizedLayout],
    numbers: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.floating]] | None,
    pad_id: int,
) -> RankingBatch:
    """Pad trees into one batch; pairs are in the order of the trees' branches."""
    tokens = collate(trees, pad_id)
    rows, columns = branch_ends(tokens)
    answers = np.concatenate(labels) if labels is not None else np.zeros(len(rows))
    return RankingBatch(
        tokens=tokens,
        rows=rows,
        columns=columns,
        numbers=torch.from_numpy(np.concatenate(numbers)),
        labels=torch.from_numpy(answers.astype(np.int64)),
    )


def write_trees(
    folder: Path, trees: Iterator[TokenizedLayout], extra: Iterator[dict[str, Any]], key: Mapping[str, Any]
) -> datasets.Dataset:
    """Return trees as a memory-mapped dataset, written once under a name made from ``key``.

    Args:
        folder: where caches lie.
        trees: made only when the file is not there.
        extra: further columns of each row.
        key: everything that the content depends on.
    """
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True, default=str).encode()).hexdigest()[:24]
    path = folder / f"trees-{name}.arrow"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{np.random.default_rng().integers(1 << 62):x}.part")
        with datasets.arrow_writer.ArrowWriter(path=str(half)) as writer:
            for tree, columns in zip(trees, extra, strict=True):
                writer.write({**{array: getattr(tree, array).tolist() for array in ARRAYS}, **columns})
            writer.finalize()
        half.replace(path)
    return datasets.Dataset.from_file(str(path))


def read_tree(row: Mapping[str, Any]) -> TokenizedLayout:
    """Return one cached row as a tree."""
    ids, positions, blocks, branches, segments = (np.asarray(row[array], dtype=np.int32) for array in ARRAYS)
    return TokenizedLayout(ids, positions, blocks, branches, segments)


def with_sampled_negatives(positives: Judgements, num_negatives: int, seed: int) -> Judgements:
    """Return pairs with ``num_negatives`` random unmet items beside each positive, at the same point of the history.

    Args:
        positives: pairs whose label is 1.
        num_negatives: for each positive.
        seed: each user's draws depend on it and on the user alone.
    """
    history, num_items = positives.history, positives.history.num_items
    items = np.empty((len(positives), num_negatives), dtype=np.int32)
    users = positives.users
    order = np.argsort(users, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(users[order])) + 1) if len(order) else []:
        user = int(users[rows[0]])
        rng = np.random.default_rng([seed, user])
        met = np.unique(np.concatenate([history.items[history.of(user)], positives.items[rows]]))
        unmet = np.setdiff1d(np.arange(num_items), met)
        if len(unmet) == 0:
            unmet = np.arange(num_items)
        items[rows] = rng.choice(unmet, size=(len(rows), num_negatives))
    repeat = np.repeat(np.arange(len(positives)), num_negatives)
    both = positives.take(np.concatenate([np.arange(len(positives)), repeat]))
    labels = np.concatenate([np.ones(len(positives)), np.zeros(len(repeat))]).astype(np.float32)
    return replace(both, items=np.concatenate([positives.items, items.reshape(-1)]), labels=labels)


def every_event(histories: Histories, split: Split = "train") -> Judgements:
    """Return each event of ``split`` with an item as a positive pair that sees the events before it."""
    return histories.judged(split, np.ones(histories.num_events, dtype=np.float32))


def pair_statistics(statistics: ItemStatistics, pairs: Judgements, past_only: bool) -> dict[str, NDArray[np.float64]]:
    """Return every number of :data:`STATISTICS` for every pair."""
    numbers = statistics.pairs(pairs, past_only=past_only)
    return {name: numbers[name] for name in STATISTICS}


def without_history(
    pairs: Judgements, statistics: Mapping[str, NDArray[np.float64]], share: float, seed: int
) -> tuple[Judgements, dict[str, NDArray[np.float64]]]:
    """Return pairs and statistics in which a random share of the pairs has a user without history.

    What is known of the item stays as it stood at the pair's moment; only the user's bond with it is forgotten.

    Args:
        share: of the pairs.
        seed: of the choice.
    """
    forgotten = np.random.default_rng(seed).random(len(pairs)) < share
    changed = {name: values.copy() for name, values in statistics.items()}
    for name in CROSS_NAMES:
        # No events: a rate is unknown, a count is zero (where the item has the label at all).
        empty = np.where(np.isnan(changed[name]), np.nan, 0.0) if name.endswith("count") else np.nan
        changed[name] = np.where(forgotten, empty, changed[name])
    return replace(pairs, lengths=np.where(forgotten, 0, pairs.lengths)), changed
