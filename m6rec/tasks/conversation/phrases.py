"""What people say around titles, and what they ask: phrases of training dialogues. Knows no model and no tokenizer."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from m6rec.tasks.conversation.titles import Titles

# Rare phrases hold what is true of one item only.
OFTEN, MOST, BETWEEN = 2, 200, 3
_STOP = re.compile(r"^\s*([.!?]+)")


@dataclass(frozen=True)
class Heard:
    """Phrases without any item in them.

    Args:
        asks: whole questions.
        offers: words around titles: before the first, between two, and the stop behind the last.
    """

    asks: tuple[str, ...]
    offers: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, replies: Iterable[Sequence[str]], titles: Titles) -> "Heard":
        """Collect the most frequent phrases.

        Args:
            replies: each as words, title, words, title, ..., words.
            titles: finds titles among the words: a phrase that holds one is left out.
        """
        asks, offers = Counter[str](), Counter[tuple[str, ...]]()
        for pieces in replies:
            words = tuple(" ".join(piece.split()) for piece in pieces[0::2])
            if len(words) > 1:
                offers[_offer(words)] += 1
            elif words[0].endswith("?"):
                asks[words[0]] += 1
        return cls(
            tuple(ask for ask in _often(asks) if not titles.find(ask)),
            tuple(offer for offer in _often(offers) if not any(titles.find(part) for part in offer)),
        )


def _offer(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words around titles up to the stop behind them: what follows tells of the true item alone.

    >>> _offer(("Try", ", by Someone. It is"))
    ('Try', '.')
    >>> _offer(("How about", "or", "?"))
    ('How about', 'or', '?')
    """
    kept = [words[0]]
    for part in words[1:-1]:
        if len(part.split()) > BETWEEN:
            break
        kept.append(part)
    stop = _STOP.match(words[len(kept)])
    return (*kept, stop.group(1) if stop else ".")


def _often(counts: Counter[Any]) -> list[Any]:
    ranked = [phrase for phrase, _ in counts.most_common()]
    often = [phrase for phrase in ranked if counts[phrase] >= OFTEN]
    return (often or ranked)[:MOST]
