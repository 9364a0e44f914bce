"""Dialogues in tokens: what the model reads, and what it learns to say. Knows no loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.data.dialogues import Moment, Turn, named
from m6rec.errors import BackboneError
from m6rec.tasks.conversation.evidence import Asked
from m6rec.tasks.conversation.titles import Titles
from m6rec.text.batch import TokenBatch
from m6rec.text.dialogue import ITEM_MARK, defused
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.segments import Layout, Segment
from m6rec.text.tokenize import TextTokenizer, TokenizedLayout

NOTHING = -100


@dataclass(frozen=True)
class Lesson:
    """A moment as it is learnt.

    Args:
        tokens: the dialogue, and what the system said as a branch.
        labels: ``[tokens]`` the token to predict at each; ``NOTHING`` where there is none.
    """

    tokens: TokenizedLayout
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ConversationBatch:
    """Moments of dialogues.

    Args:
        asked: what is known at each.
        rows: ``[targets]`` the moment of each recommended item.
        targets: ``[targets]`` their positions in the catalogue.
        vectors: ``[moments, hidden]`` of all that was said, where a frozen backbone has read it before.
        tokens: the moments in tokens, where it is read in the step.
        labels: ``[moments, tokens]`` the token to predict at each; ``NOTHING`` where there is none.
    """

    asked: tuple[Asked, ...]
    rows: Int[Tensor, " targets"]
    targets: Int[Tensor, " targets"]
    vectors: Float[Tensor, "moments hidden"] | None = None
    tokens: TokenBatch | None = None
    labels: Int[Tensor, "moments tokens"] | None = None

    def to(self, device: torch.device | str) -> "ConversationBatch":
        """Return the batch on ``device``; the evidence is weighed on the CPU."""
        return replace(
            self,
            tokens=None if self.tokens is None else self.tokens.to(device),
            labels=None if self.labels is None else self.labels.to(device),
        )


class DialogueWords:
    """Turns into tokens.

    Args:
        prompt: order and marks.
        renderer: the domain's words.
        tokenizer: the model's.
        titles: finds what a text names.
        names: the catalogue's titles, by position.
        max_tokens: longest sequence that the model reads.

    Raises:
        BackboneError: the tokenizer cannot write the mark of an item.
    """

    def __init__(
        self,
        prompt: Prompt,
        renderer: Renderer,
        tokenizer: TextTokenizer,
        titles: Titles,
        names: Sequence[str],
        max_tokens: int,
    ) -> None:
        self.prompt, self.renderer, self.tokenizer, self.titles = prompt, renderer, tokenizer, titles
        self.names, self.max_tokens = names, min(prompt.budget_tokens, max_tokens)
        mark = tokenizer.text(ITEM_MARK)
        if not mark or mark[-1] in tokenizer.special_ids:
            raise BackboneError(f"got a tokenizer that cannot write {ITEM_MARK}, expected one that spells every sign")
        self.mark = mark[-1]

    def asked(self, turns: Sequence[Turn], own: Sequence[int] = ()) -> Asked:
        """Return what is known after some turns.

        Args:
            turns: what was said.
            own: items of the whole dialogue, where it was counted in training.
        """
        first = {item: turn.speaker == "SYSTEM" for turn in reversed(turns) for item in turn.items}
        items = named(turns)
        words = [token for text in self.tokenizer.texts([turn.text for turn in turns]) for token in text]
        return Asked(tuple(items), tuple(first[item] for item in items), tuple(words), tuple(own))

    def read(self, dialogues: Sequence[Sequence[Turn]]) -> list[TokenizedLayout]:
        """Return dialogues alone, as a source."""
        layouts = [self.prompt.layout(self.renderer, UserText(turns=turns)) for turns in dialogues]
        return self.tokenizer.layouts(layouts, self.max_tokens)

    def opening(self, turns: Sequence[Turn], recommends: bool, room: int) -> TokenizedLayout:
        """Return a dialogue with a branch that ends where the system goes on, ``room`` tokens before the limit."""
        return self.tokenizer.layout(self._layout(turns, recommends), self.max_tokens - room)

    def lessons(self, moments: Sequence[Moment]) -> list[Lesson]:
        """Return moments with what was said then; items stand between marks, by the catalogue's titles."""
        layouts = [self._lesson(moment) for moment in moments]
        found = self.tokenizer.layouts(layouts, self.max_tokens)
        return [_with_labels(layout, tokens) for layout, tokens in zip(layouts, found, strict=True)]

    def _layout(self, turns: Sequence[Turn], recommends: bool, answer: str | None = None) -> Layout:
        answers = {} if answer is None else {"answer": answer}
        candidate = Candidate(item={"recommends": recommends}, answers=answers)
        return self.prompt.layout(self.renderer, UserText(turns=turns), [candidate])

    def _lesson(self, moment: Moment) -> Layout:
        pieces = self.pieces(moment.reply)
        layout = self._layout(moment.turns, len(pieces) > 1, moment.reply.text)
        branch = [
            part
            for segment in layout.branches[0]
            for part in (_cut(segment, pieces) if segment.role == "answer" else [segment])
        ]
        return replace(layout, branches=(tuple(branch),))

    def pieces(self, reply: Turn) -> list[str]:
        """Return a reply as words, title, words, title, ..., words."""
        pieces, start = list[str](), 0
        for found in self.titles.find(reply.text, frozenset(reply.items)):
            pieces += [reply.text[start : found.start], self.names[found.item]]
            start = found.stop
        return [*pieces, reply.text[start:]]


def _cut(answer: Segment, pieces: Sequence[str]) -> list[Segment]:
    """Return an answer as segments of its own: words and titles, a mark between them."""
    texts: list[str] = []
    for number, piece in enumerate(pieces):
        texts += [ITEM_MARK] * bool(number) + [defused(piece, ())]
    return [
        replace(answer, name=f"{answer.name}.{number}", text=text) for number, text in enumerate(texts) if text.strip()
    ]


def _with_labels(layout: Layout, tokens: TokenizedLayout) -> Lesson:
    # The target's end is learnt as well: what is said has to stop.
    wanted = (("answer", None), ("control", "[EOS]"))
    learnt = np.array([(s.role, s.text if s.role == "control" else None) in wanted for s in layout.segments])
    labels = np.full(len(tokens), NOTHING, dtype=np.int64)
    following = np.flatnonzero(learnt[tokens.segments[1:]])
    labels[following] = tokens.ids[1:][following]
    return Lesson(tokens, labels)
