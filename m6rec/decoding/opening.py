"""What the model goes on from, and what it has written. Knows no model and no prompt file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from m6rec.errors import ConfigError
from m6rec.text.tokenize import TokenizedLayout

Constraint = Callable[[Int[Tensor, " written"], Float[Tensor, " vocabulary"]], Float[Tensor, " vocabulary"]]
"""Ids written so far, logits of the next token -> logits; minus infinity forbids a token."""


@dataclass(frozen=True)
class Opening:
    """A prompt that ends where the model goes on.

    Args:
        tokens: a trunk, and one branch that is not finished.
        ends: ids that end the answer; they are not part of it. No other special token is ever written.
        constraint: what may be written.
        draw: number of this draw among those for the same prompt (``sample``).
    """

    tokens: TokenizedLayout
    ends: frozenset[int]
    constraint: Constraint | None = None
    draw: int = 0


@dataclass(frozen=True)
class Written:
    """An answer.

    Args:
        text: in words, without stop strings.
        ids: the tokens, without the one that ended it.
        log_prob: natural logarithm of the probability that the model itself gives to the tokens and the end.
        ended: by an ``end`` token, a ``stop`` string, or the ``limit`` of length.
    """

    text: str
    ids: tuple[int, ...]
    log_prob: float
    ended: Literal["end", "stop", "limit"]

    @property
    def complete(self) -> bool:
        """Whether the model ended it, and not the limit."""
        return self.ended != "limit"


def check_room(openings: Sequence[Opening], max_new_tokens: int, max_tokens: int) -> None:
    """Refuse openings that cannot be gone on from.

    Raises:
        ConfigError: one that the answer does not fit behind, or that has not one unfinished branch.
    """
    for opening in openings:
        tokens = opening.tokens
        if not len(tokens) or tokens.branches[-1] != 1:
            raise ConfigError("got a prompt without an open branch, expected a trunk and one branch that ends open")
        length = int(tokens.positions[-1]) + 1
        if length + max_new_tokens > max_tokens:
            raise ConfigError(
                f"got a prompt of {length} tokens, expected at most {max_tokens - max_new_tokens}: the model reads "
                f"{max_tokens} and max_new_tokens={max_new_tokens} must fit behind it; shorten one of them"
            )
