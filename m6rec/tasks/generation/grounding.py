"""What a text names, and whether the input holds it: attributes, features and titles by their words.

Knows no model, no task and no user.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from m6rec.decoding import Constraint
from m6rec.text.tokenize import TextTokenizer

NOT_ATTRIBUTES = ("title", "description", "key", "id", "url", "image")
_WORD = re.compile(r"\w+")
_SUBTITLE = re.compile(r"\s*[:(\[–—]\s*|\s+-\s+")


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text, case aside.

    >>> words_of("Right for GREEN living!")
    ('right', 'for', 'green', 'living')
    """
    return tuple(_WORD.findall(text.casefold()))


class Lexicon:
    """Phrases, and where a text names one of them.

    Args:
        phrases: as a person writes them; what holds no letter is left out.

    Attributes:
        phrases: each as its words.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        found = (words_of(phrase) for phrase in phrases)
        self.phrases = frozenset(words for words in found if any(word.isalpha() for word in words))
        self._lengths = sorted({len(words) for words in self.phrases})

    def __len__(self) -> int:
        return len(self.phrases)

    def find(self, text: str) -> list[str]:
        """Return the phrases that a text names, each once, in its order.

        >>> Lexicon(["green living", "families"]).find("for families, and green living")
        ['families', 'green living']
        """
        words = words_of(text)
        places = ((start, length) for start in range(len(words)) for length in self._lengths)
        named = (words[start : start + length] for start, length in places)
        return list(dict.fromkeys(" ".join(phrase) for phrase in named if phrase in self.phrases))


def attributes(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return every attribute value of items: what their fields hold, but for titles, descriptions and numbers.

    >>> attributes([{"title": "Pot", "category": "Shop > Kitchen", "audience": "cooks|guests", "price": 3.5}])
    ['Kitchen', 'Shop', 'cooks', 'guests']
    """
    values: set[str] = set()
    for record in records:
        for name, value in record.items():
            if name in NOT_ATTRIBUTES:
                continue
            parts = re.split(r"[>|]", value) if isinstance(value, str) else value
            values.update(part.strip() for part in parts) if isinstance(parts, list | tuple) else None
    return sorted(value for value in values if isinstance(value, str) and value)


def names(title: str) -> list[str]:
    """Return what a title may be called in a sentence: the whole, and what stands before its subtitle.

    >>> names("Gone Girl: A Novel")
    ['Gone Girl: A Novel', 'Gone Girl']
    """
    return list(dict.fromkeys([title, _SUBTITLE.split(title)[0]]))


def feature_words(texts: Sequence[str], least: int = 5, share: float = 0.2) -> list[str]:
    """Return the words that tell texts apart: of four letters or more, in ``least`` texts, in no more than a share.

    Differs: PETER mines aspects with a sentiment tool; counting is what needs no tool and knows every language.
    """
    counts = Counter(word for text in texts for word in set(words_of(text)))
    most = share * len(texts)
    return sorted(word for word, count in counts.items() if len(word) >= 4 and least <= count <= most)


class Unsaid:
    """Forbids to name what the input does not hold.

    Args:
        lexicon: what can be named.
        text: the tokenizer that names are written in.

    Differs: a phrase is known by the tokens that it is normally cut into, and its last token is forbidden even where a
        longer word would have followed.
    """

    def __init__(self, lexicon: Lexicon, text: TextTokenizer) -> None:
        self.lexicon = lexicon
        phrases = sorted(" ".join(phrase) for phrase in lexicon.phrases)
        self._ends: dict[tuple[int, ...], list[tuple[int, str]]] = {}
        for phrase, ids in zip(phrases, text.texts(phrases), strict=True):
            if ids:
                self._ends.setdefault(tuple(ids[:-1]), []).append((ids[-1], phrase))
        self._longest = max(map(len, self._ends), default=0)

    def given(self, inputs: Iterable[str]) -> Constraint:
        """Return the constraint for one prompt.

        Args:
            inputs: everything that the prompt says.
        """
        known = {phrase for part in inputs for phrase in self.lexicon.find(part)}
        ends = {
            begun: [token for token, phrase in phrases if phrase not in known] for begun, phrases in self._ends.items()
        }

        def forbid(
            written: Int[Tensor, " written"], logits: Float[Tensor, " vocabulary"]
        ) -> Float[Tensor, " vocabulary"]:
            ids = tuple(written.tolist())
            tails = (ids[len(ids) - length :] for length in range(min(len(ids), self._longest) + 1))
            wrong = [token for tail in tails for token in ends.get(tail, ())]
            return logits if not wrong else logits.index_fill(0, torch.tensor(wrong, device=logits.device), -torch.inf)

        return forbid


@dataclass(frozen=True)
class Evidence:
    """What a text rests on.

    Args:
        attributes: what it names that the input holds, in its order.
        events: numbers of the events that hold something of it, or whose title it names.
        inferred: feature words that it says and no input does: the model's own reading.
        unsupported: attributes of the catalogue that it names and no input holds.
    """

    attributes: tuple[str, ...]
    events: tuple[int, ...]
    inferred: tuple[str, ...]
    unsupported: tuple[str, ...]


def evidence(
    text: str, attributes: Lexicon, features: Lexicon, item: str, events: Sequence[str], titles: Sequence[str]
) -> Evidence:
    """Return what a text rests on.

    Args:
        text: the explanation.
        attributes: the catalogue's.
        features: words that tell texts apart.
        item: the item's words.
        events: each event's words.
        titles: each event's title; empty = none.

    >>> audiences, styles = Lexicon(["families", "cooks"]), Lexicon(["rustic"])
    >>> evidence("for families, rustic", audiences, styles, "A pot", ["for families"], [""])
    Evidence(attributes=('families',), events=(0,), inferred=('rustic',), unsupported=())
    """
    named, said = attributes.find(text), features.find(text)
    both = list(dict.fromkeys([*named, *said]))
    held = [{*attributes.find(words), *features.find(words)} for words in events]
    known = {*attributes.find(item), *features.find(item)}.union(*held)
    mentioned = Lexicon(name for title in titles for name in names(title))
    found = set(mentioned.find(text))
    rests = (
        number
        for number, (holds, title) in enumerate(zip(held, titles, strict=True))
        if holds & set(both) or found & {" ".join(words_of(name)) for name in names(title)}
    )
    return Evidence(
        attributes=tuple(phrase for phrase in both if phrase in known),
        events=tuple(rests),
        inferred=tuple(phrase for phrase in said if phrase not in known and phrase not in named),
        unsupported=tuple(phrase for phrase in named if phrase not in known),
    )
