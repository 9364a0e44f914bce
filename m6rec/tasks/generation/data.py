"""Passages as token trees, with a mark on every token that is to be written. Knows no model and no loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.data.histories import Histories
from m6rec.data.store import Dataset
from m6rec.tasks.generation.passages import Passages
from m6rec.tasks.trees import Slate, slates
from m6rec.text.batch import TokenBatch, collate
from m6rec.text.prompt import Candidate, Events, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.segments import Layout
from m6rec.text.tokenize import TextTokenizer, TokenizedLayout


@dataclass(frozen=True)
class GenerationBatch:
    """Trees, and what is learnt in them.

    Args:
        tokens: one tree a slate.
        rows: ``[targets]`` tree of each token that is written.
        columns: ``[targets]`` the token before it: where it is predicted.
        labels: ``[targets]`` its id.
    """

    tokens: TokenBatch
    rows: Int[Tensor, " targets"]
    columns: Int[Tensor, " targets"]
    labels: Int[Tensor, " targets"]

    def to(self, device: torch.device | str) -> "GenerationBatch":
        """Return the batch on ``device``."""
        return GenerationBatch(**{name: value.to(device) for name, value in vars(self).items()})


def generation_batch(
    trees: Sequence[TokenizedLayout], learnt: Sequence[NDArray[np.bool_]], pad_id: int
) -> GenerationBatch:
    """Pad trees into one batch.

    Args:
        trees: any number.
        learnt: ``[tokens]`` bool for each tree: the tokens that are written; none of them begins a branch.
        pad_id: id of padding.
    """
    tokens = collate(trees, pad_id)
    marked = torch.zeros(tokens.ids.shape, dtype=torch.bool)
    for row, marks in enumerate(learnt):
        marked[row, : len(marks)] = torch.from_numpy(np.asarray(marks, dtype=bool))
    rows, columns = marked.nonzero(as_tuple=True)
    return GenerationBatch(tokens, rows, columns - 1, tokens.ids[rows, columns])


class PassageWriter:
    """Renders and tokenises passages.

    Args:
        prompt: the task's order of segments.
        renderer: the domain's words.
        text: the tokenizer.
        max_tokens: longest path through a tree.
        max_events: longest stretch of history in one tree.
        max_branches: most passages in one tree.

    Attributes:
        dense: whether the prompt hides later events from earlier branches, so that passages can share a tree.
    """

    def __init__(
        self,
        prompt: Prompt,
        renderer: Renderer,
        text: TextTokenizer,
        max_tokens: int,
        max_events: int,
        max_branches: int,
    ) -> None:
        self.prompt, self.renderer, self.text = prompt, renderer, text
        self.max_tokens = min(max_tokens, prompt.budget_tokens)
        self.max_events, self.max_branches = max_events, max_branches
        events = [part.options for part in prompt.trunk if isinstance(part.options, Events)]
        self.dense = all(options.blocks == "each" and options.time != "ago" for options in events)

    def slates(self, passages: Passages) -> list[Slate]:
        """Group passages that can share a tree; a prompt that is not dense gives each a tree of its own."""
        moments = passages.moments
        if self.dense:
            return slates(moments, self.max_events, self.max_branches)
        starts = moments.history.offsets[moments.users]
        stops = starts + moments.lengths
        firsts = np.maximum(starts, stops - self.max_events)
        rows = zip(moments.users.tolist(), firsts.tolist(), stops.tolist(), strict=True)
        return [Slate(*row, np.array([number])) for number, row in enumerate(rows)]

    def layouts(
        self, dataset: Dataset, passages: Passages, groups: Sequence[Slate], hints: Sequence[Mapping[str, Any]]
    ) -> Iterator[Layout]:
        """Yield each slate's prompt, its answers filled in.

        Args:
            dataset: whose events and users these are.
            passages: what is written.
            groups: of the passages.
            hints: one a passage: further fields that the prompt may show.
        """
        for slate in groups:
            first = slate.start - int(passages.moments.history.offsets[slate.user])
            candidates = [
                Candidate(
                    item={**passages.texts[number].item, **hints[number]},
                    events_seen=max(0, int(passages.moments.lengths[number]) - first),
                    answers=passages.texts[number].answers,
                )
                for number in slate.pairs.tolist()
            ]
            user = self.user(dataset, passages.moments.history, slate)
            yield self.prompt.layout(self.renderer, user, candidates)

    def user(self, dataset: Dataset, history: Histories, slate: Slate) -> UserText:
        """Return what a slate's trunk says of its user."""
        assert history.rows is not None
        events = [dataset.event_record(int(row)) for row in history.rows[slate.start : slate.stop]]
        return UserText(profile=dataset.user_record(slate.user), events=events)

    def trees(self, layouts: Iterator[Layout]) -> Iterator[tuple[TokenizedLayout, NDArray[np.bool_]]]:
        """Yield trees and which of their tokens are written."""
        for layout in layouts:
            tree = self.text.layout(layout, self.max_tokens)
            yield tree, self.learnt(layout, tree)

    def learnt(self, layout: Layout, tree: TokenizedLayout) -> NDArray[np.bool_]:
        """Mark the tokens of answers, and the token behind each, by which it ends.

        An answer whose tail was cut has no end to learn.
        """
        segments = layout.segments
        is_answer = np.array([segment.role == "answer" for segment in segments])
        kept = np.bincount(tree.segments, minlength=len(segments))
        lengths = [len(self.text.text(s.text)) if s.role == "answer" else 0 for s in segments]
        is_whole = is_answer & (kept == lengths)
        answers, ends = is_answer[tree.segments], np.zeros(len(tree), dtype=bool)
        same_branch = tree.branches[1:] == tree.branches[:-1]
        ends[1:] = is_whole[tree.segments[:-1]] & (tree.segments[1:] != tree.segments[:-1]) & same_branch
        marks: NDArray[np.bool_] = answers | ends
        return marks


def read_marks(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return which tokens of one cached tree are written."""
    return np.asarray(row["learnt"], dtype=bool)
