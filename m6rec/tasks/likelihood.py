"""How likely are answers? Sentences behind one trunk, which is read once, and the log-probability of their words.

Knows layouts and a backbone's language-model head; no dataset and no task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.backbones.past import read, read_on
from m6rec.errors import TemplateError
from m6rec.text.batch import collate
from m6rec.text.segments import CONTROL_TOKENS, Layout
from m6rec.text.tokenize import TextTokenizer, TokenizedLayout

END = CONTROL_TOKENS[-1]


@dataclass(frozen=True)
class Question:
    """A layout in tokens, and which of them are answers.

    Args:
        tokens: a trunk, which may be empty, and branches.
        answers: ``[tokens]`` bool: words of an answer, and the [EOS] that closes it.
    """

    tokens: TokenizedLayout
    answers: NDArray[np.bool_]

    def trunk(self) -> TokenizedLayout:
        """Return what all branches share."""
        return _columns(self.tokens, self.tokens.branches == 0)

    def branches(self) -> "list[Question]":
        """Return every branch alone, with its places in the tree."""
        chosen = [self.tokens.branches == number for number in range(1, int(self.tokens.branches.max(initial=0)) + 1)]
        return [Question(_columns(self.tokens, kept), self.answers[kept]) for kept in chosen]


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods of answers.

    Args:
        total: ``[answers]`` float64 sum of the tokens' log-probabilities, in nats.
        tokens: ``[answers]`` int64 how many tokens the sum is over.
    """

    total: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """``[answers]`` log-probability a token."""
        return self.total / np.maximum(1, self.tokens)

    @staticmethod
    def joined(parts: "Sequence[Likelihood]") -> "Likelihood":
        """Return several as one."""
        return Likelihood(
            np.concatenate([np.zeros(0), *(part.total for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.tokens for part in parts)]),
        )


def ask(tokenizer: TextTokenizer, layouts: Sequence[Layout], max_tokens: int) -> list[Question]:
    """Tokenise layouts and mark their answers.

    A trunk without words is left out, the way a model is trained to write without a source.

    Raises:
        TemplateError: an answer at the very beginning of a branch, which no token is there to predict.
        ConfigError: ``max_tokens`` does not even hold the control tokens.
    """
    shown = [layout if _has_words(layout) else Layout((), layout.branches, layout.dropped) for layout in layouts]
    tokens = tokenizer.layouts(shown, max_tokens)
    marks = [_marks(layout)[row.segments] for layout, row in zip(shown, tokens, strict=True)]
    for row, answers in zip(tokens, marks, strict=True):
        if (answers & (np.diff(row.branches, prepend=0) != 0)).any():
            raise TemplateError(
                "got a branch that begins with its answer, expected a token before it: begin with [BOS]"
            )
    return [Question(row, answers) for row, answers in zip(tokens, marks, strict=True)]


def answer_log_probs(
    backbone: Backbone,
    states: Float[Tensor, "batch tokens hidden"],
    ids: Int[Tensor, "batch tokens"],
    answers: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, " answered"]:
    """Return the log-probability of every answer token, row by row; each is predicted from the token before it."""
    predicted = answers[:, 1:]
    logits = backbone.logits(states[:, :-1][predicted]).float()
    return logits.log_softmax(-1).gather(1, ids[:, 1:][predicted].unsqueeze(1)).squeeze(1)


def pad_answers(questions: Sequence[Question]) -> Bool[Tensor, "batch tokens"]:
    """Return the marks of the answers as :func:`m6rec.text.batch.collate` pads the tokens."""
    marks = torch.zeros(
        len(questions), max((len(question.answers) for question in questions), default=0), dtype=torch.bool
    )
    for row, question in enumerate(questions):
        marks[row, : len(question.answers)] = torch.from_numpy(question.answers)
    return marks


@torch.no_grad()
def likelihoods(
    backbone: Backbone, questions: Sequence[Question], pad_id: int, rows_at_once: int = 128
) -> list[Likelihood]:
    """Return how likely each question's answers are; every trunk is read once.

    Args:
        backbone: any with keys and values to keep and a language-model head.
        questions: a trunk and its branches each.
        pad_id: what to pad with.
        rows_at_once: branches read together; memory and speed only.
    """
    found = []
    for group in _groups(questions, rows_at_once):
        branches = [question.branches() for question in group]
        owners = [place for place, own in enumerate(branches) for _ in own]
        together = _read(
            backbone,
            [question.trunk() for question in group],
            owners,
            [branch for own in branches for branch in own],
            pad_id,
            rows_at_once,
        )
        stops = np.cumsum([len(own) for own in branches]).tolist()
        found += [
            Likelihood(together.total[stop - len(own) : stop], together.tokens[stop - len(own) : stop])
            for own, stop in zip(branches, stops, strict=True)
        ]
    return found


def _read(
    backbone: Backbone,
    trunks: Sequence[TokenizedLayout],
    owners: Sequence[int],
    branches: Sequence[Question],
    pad_id: int,
    rows_at_once: int,
) -> Likelihood:
    """Read trunks once, then branches in pieces, each row behind its own trunk."""
    device = backbone.control.device
    shared = collate(trunks, pad_id).to(device)
    past = read(backbone, shared)[1] if shared.ids.shape[1] else None
    parts = [Likelihood(np.zeros(0), np.zeros(0, dtype=np.int64))]
    for start in range(0, len(branches), rows_at_once):
        chunk = branches[start : start + rows_at_once]
        batch, answers = collate([branch.tokens for branch in chunk], pad_id).to(device), pad_answers(chunk).to(device)
        if past is None:
            states = backbone(batch)
        else:
            rows = torch.tensor(owners[start : start + rows_at_once], device=device)
            states, _ = read_on(backbone, past.take(rows), batch)
        scores = answer_log_probs(backbone, states, batch.ids, answers).double()
        places = answers[:, 1:].nonzero()[:, 0]
        total = torch.zeros(len(chunk), dtype=torch.float64, device=device).index_add(0, places, scores)
        parts.append(Likelihood(total.cpu().numpy(), answers.sum(1).cpu().numpy()))
    return Likelihood.joined(parts)


def _groups(questions: Sequence[Question], rows_at_once: int) -> Iterator[list[Question]]:
    """Yield questions in order, together as long as their branches fit into one pass."""
    group: list[Question] = []
    size = 0
    for question in questions:
        count = int(question.tokens.branches.max(initial=0))
        if group and size + count > rows_at_once:
            yield group
            group, size = [], 0
        group, size = [*group, question], size + count
    if group:
        yield group


def _has_words(layout: Layout) -> bool:
    return any(segment.role != "control" for segment in layout.trunk)


def _marks(layout: Layout) -> NDArray[np.bool_]:
    """Return ``[segments]`` whether each is an answer, or the [EOS] behind one."""
    segments = layout.segments
    answers = [segment.role == "answer" for segment in segments]
    closes = [False, *(segments[i].text == END and answers[i - 1] for i in range(1, len(segments)))]
    return np.array(answers, dtype=bool) | np.array(closes[: len(segments)], dtype=bool)


def _columns(tokens: TokenizedLayout, kept: NDArray[np.bool_]) -> TokenizedLayout:
    return TokenizedLayout(
        tokens.ids[kept], tokens.positions[kept], tokens.blocks[kept], tokens.branches[kept], tokens.segments[kept]
    )
