"""History granularity "flat": one text for the whole history, read token by token on the tree layout.

Every event is a block of the trunk and every position to predict a branch ``[EOS']`` that hangs on it, so that one pass
gives the user's state after each event and serving runs the same mask. Knows no loss and no catalogue.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.tasks.retrieval.windows import Window
from m6rec.text.batch import TokenBatch, branch_ends, collate
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer

EventRecord = Mapping[str, Any]


@dataclass(frozen=True)
class FlatBatch:
    """Histories as token trees, and where each user state is read.

    Args:
        tokens: one tree a window.
        rows: ``[positions]`` tree of each position.
        columns: ``[positions]`` token of each position: its ``[EOS']``.
        targets: ``[positions]`` item to predict, -1 in inference.
        segments: ``[positions, length]`` what the user had met in the window by then, -1 beyond.
    """

    tokens: TokenBatch
    rows: Int[Tensor, " positions"]
    columns: Int[Tensor, " positions"]
    targets: Int[Tensor, " positions"]
    segments: Int[Tensor, "positions length"]

    def to(self, device: torch.device | str) -> "FlatBatch":
        """Return the batch on ``device``."""
        return FlatBatch(**{name: value.to(device) for name, value in vars(self).items()})

    def met(self, num_items: int) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Return (position, item) of every item that a position's user has met, the position's target excepted."""
        chosen = (self.segments >= 0) & (self.segments < num_items) & (self.segments != self.targets[:, None])
        return chosen.nonzero()[:, 0], self.segments[chosen]


class HistoryReader:
    """Users' texts as token trees, whatever is read out of them.

    Args:
        prompt: the task's order of segments, with one block an event.
        renderer: the domain's words.
        tokenizer: with the control tokens added.
        max_tokens: of the backbone.
    """

    def __init__(self, prompt: Prompt, renderer: Renderer, tokenizer: TextTokenizer, max_tokens: int) -> None:
        self.prompt, self.renderer, self.tokenizer = prompt, renderer, tokenizer
        self.max_tokens = min(max_tokens, prompt.budget_tokens)

    def batch(
        self,
        windows: Sequence[Window],
        record: Callable[[int], EventRecord],
        num_items: int,
        predict: bool,
    ) -> FlatBatch:
        """Render, tokenise and pad windows.

        Args:
            record: event number -> the event's record.
            num_items: segments from here on are searches and never targets.
            predict: one branch at each event that has a target (training), or one at the end (inference).
        """
        texts, seen, targets, histories = [], [], [], []
        for window in windows:
            events = [record(int(event)) for event in window.events]
            places = [place for place in range(window.first_target, len(window)) if window.segments[place] < num_items]
            seen.append(places if predict else [len(window)])
            targets.append([int(window.segments[place]) for place in places] if predict else [-1])
            histories.append(window.segments)
            texts.append(UserText(events=events))
        return self.read(texts, seen, targets, histories)

    def read(
        self,
        users: Sequence[UserText],
        seen: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        histories: Sequence[NDArray[np.int64]],
    ) -> FlatBatch:
        """Tokenise ``users`` with one branch for each number of events seen."""
        layouts = [
            self.prompt.layout(self.renderer, user, [Candidate(events_seen=count) for count in counts])
            for user, counts in zip(users, seen, strict=True)
        ]
        trees = self.tokenizer.layouts(layouts, self.max_tokens)
        tokens = collate(trees, self.tokenizer.pad_id)
        rows, columns = branch_ends(tokens)
        width = max((max(counts, default=0) for counts in seen), default=0)
        met = torch.full((len(rows), max(width, 1)), -1, dtype=torch.long)
        place = 0
        for history, counts in zip(histories, seen, strict=True):
            for count in counts:
                met[place, :count] = torch.from_numpy(history[:count])
                place += 1
        flat = [target for row in targets for target in row]
        return FlatBatch(tokens, rows, columns, torch.tensor(flat, dtype=torch.long), met)


class FlatHistory(nn.Module):
    """A user's text to a user vector: the state at ``[EOS']``, then ``W_u``.

    Args:
        hidden_size: width of the backbone's states.
        dim: width of the user vector.
        reader: of the users' texts.

    Source: M6-Rec section 1.4 (retrieval). Differs: the user's events are blocks in time order rather than one
        bidirectional source, so that training scores every position in one pass.
    """

    def __init__(self, hidden_size: int, dim: int, reader: HistoryReader) -> None:
        super().__init__()
        self.project = nn.Linear(hidden_size, dim)
        self.reader = reader

    def forward(self, backbone: Backbone, batch: FlatBatch) -> Float[Tensor, "positions dim"]:
        """Return the user vector at each position (not normalised)."""
        states = backbone(batch.tokens)
        vectors: Tensor = self.project(states[batch.rows, batch.columns].float())
        return vectors
