"""M6's two pretraining objectives on tokens: fill in what is left out, and write what comes.

A document becomes two regions, what is given (the source) and what is to be written (the target), with a mark on every
token that is learnt. Knows no batch, no model and no words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.text.segments import BLANK
from m6rec.text.tokenize import Ids


@dataclass(frozen=True)
class Regions:
    """A document as an example.

    Args:
        source: token ids of what is given, ``[BOS'] ... [EOS']``; may be empty.
        target: token ids of what is to be written, ``[BOS] ... [EOS]``.
        source_words: ``[source]`` bool: words of the source, which a model that reads forward may learn too.
        learnt: ``[target]`` bool: tokens of the target that are predicted.
    """

    source: Ids
    target: Ids
    source_words: NDArray[np.bool_]
    learnt: NDArray[np.bool_]


class Objectives:
    """The two objectives, in one tokenizer's control tokens.

    Args:
        control_ids: ids of the control tokens and of the blank (``TextTokenizer.control_ids``).

    Source: M6-Rec (arXiv 2205.08084) section 3, after M6 (arXiv 2103.00823): text infilling and autoregressive
        generation.
    """

    def __init__(self, control_ids: dict[str, int]) -> None:
        self._ids = control_ids

    def infilling(
        self, pieces: Sequence[Ids], rng: np.random.Generator, share: float = 0.3, span: float = 5.0
    ) -> Regions:
        """Leave spans out of a text and ask for them, one after the other, a blank between two answers.

        Args:
            pieces: of one document.
            rng: where the spans fall.
            share: of the tokens, left out.
            span: mean tokens of a span; there are at most as many spans as pieces.
        """
        text = np.concatenate(pieces)
        count = min(len(pieces), max(1, round(share * len(text) / span)))
        starts, stops = draw_spans(len(text), count, share, rng)
        blank = np.array([self._ids[BLANK]], dtype=np.int32)
        kept = [text[stop:start] for stop, start in zip([0, *stops], [*starts, len(text)], strict=True)]
        answers = [text[start:stop] for start, stop in zip(starts, stops, strict=True)]
        source = self._between("[BOS']", _joined(kept, blank), "[EOS']")
        target = self._between("[BOS]", _joined(answers, blank), "[EOS]")
        words = np.r_[False, _joined(kept, blank) != blank, False]
        return Regions(source, target, words, np.arange(len(target)) > 0)

    def generation(self, pieces: Sequence[Ids], given: int = 0) -> Regions:
        """Ask for a document's pieces, each a sentence of its own, after the first ones.

        Args:
            pieces: of one document.
            given: how many pieces stand in the source; none = the whole document is written.
        """
        nothing: Ids = np.zeros(0, dtype=np.int32)
        source = self._between("[BOS']", np.concatenate(pieces[:given]), "[EOS']") if given else nothing
        target = [self._between("[BOS]", piece, "[EOS]") for piece in pieces[given:]]
        words = np.r_[False, np.ones(len(source) - 2, dtype=bool), False] if given else nothing.astype(bool)
        learnt = [np.arange(len(piece)) > 0 for piece in target]
        return Regions(source, np.concatenate(target), words, np.concatenate(learnt))

    def _between(self, begin: str, ids: Ids, end: str) -> Ids:
        return np.r_[self._ids[begin], ids, self._ids[end]].astype(np.int32)


def draw_spans(length: int, count: int, share: float, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Return starts and stops of ``count`` spans that cover about ``share`` of ``length``, in order, none touching.

    >>> draw_spans(10, 2, 0.4, np.random.default_rng(0))
    ([4, 8], [7, 9])
    """
    count = max(1, min(count, (length + 1) // 2))
    left_out = min(max(count, round(share * length)), length - count + 1)
    sizes = _parts(left_out, count, rng)
    # Between two spans at least one token stays, or they would be one.
    gaps = _parts(length - left_out + 2, count + 1, rng)
    gaps[0] -= 1
    starts = np.cumsum(gaps[:-1]) + np.r_[0, np.cumsum(sizes)[:-1]]
    return starts.tolist(), (starts + sizes).tolist()


def _parts(total: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Split ``total`` into ``count`` numbers of at least one, every way equally likely."""
    bars = np.sort(rng.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.r_[0, bars, total])


def _joined(parts: Sequence[Ids], mark: Ids) -> Ids:
    joined = [piece for part in parts for piece in (part, mark)]
    return np.concatenate(joined[:-1])
