"""Rows while they are written: tokens, where they end, and the words so far. Knows no model and no search."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from m6rec.decoding.config import DecodingConfig
from m6rec.decoding.opening import Opening, Written
from m6rec.text.tokenize import TextTokenizer


@dataclass
class Line:
    """One answer while it is written.

    Args:
        opening: its prompt.
        ids: tokens so far.
        log_prob: of the tokens so far, by the model itself.
        ended: why it is finished; ``None`` = it is not.
    """

    opening: Opening
    ids: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    ended: Literal["end", "stop", "limit"] | None = None

    def add(self, token: int, log_prob: float, config: DecodingConfig, text: TextTokenizer) -> None:
        """Take the next token, and see whether it was the last."""
        self.log_prob += log_prob
        if token in self.opening.ends:
            self.ended = "end"
            return
        self.ids.append(token)
        if config.stop and cut(text.words(self.ids), config.stop) is not None:
            self.ended = "stop"
        elif len(self.ids) >= config.max_new_tokens:
            self.ended = "limit"

    def written(self, config: DecodingConfig, text: TextTokenizer) -> Written:
        """Return the answer as it is now."""
        words = text.words(self.ids)
        kept = cut(words, config.stop)
        return Written((words if kept is None else kept).strip(), tuple(self.ids), self.log_prob, self.ended or "limit")


def cut(text: str, stop: Sequence[str]) -> str | None:
    """Return what stands before the first of ``stop``; ``None`` where there is none.

    >>> cut("a lamp. It is", (".", "It"))
    'a lamp'
    """
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(places)] if places else None


def chance(opening: Opening, seed: int) -> torch.Generator:
    """Return a prompt's own source of chance: it depends on the prompt, the draw and the seed, never on a neighbour."""
    digest = hashlib.sha256(f"{seed} {opening.draw} ".encode() + opening.tokens.ids.tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
