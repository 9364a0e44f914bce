"""Labelled pairs as token trees: one trunk a stretch of history, one branch a pair. Knows no model and no loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.data.features import STATISTICS
from m6rec.data.histories import Histories, Judgements, Split
from m6rec.data.statistics import CROSS_NAMES, ItemStatistics
from m6rec.tasks.trees import Slate
from m6rec.text.batch import TokenBatch, branch_ends, collate
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer, TokenizedLayout


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
