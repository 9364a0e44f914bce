"""What speaks for an item in a dialogue: counts, shared traits, words and text vectors, one number each.

A recommender that weighs them needs a few weights only, so that a few thousand turns teach it. Knows catalogue texts
and numbers; no backbone, no loss.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Written text has terms of its own; an id or a picture's address is no trait.
NO_TRAITS = ("key", "title", "description", "price", "image", "url")
_VALUES = re.compile(r"\s*[|,>]\s*")


@dataclass(frozen=True)
class Asked:
    """What is known at one moment of a dialogue.

    Args:
        items: positions of the items named so far, in order.
        by_system: whether the system named each.
        words: token ids of all that was said.
        own: items of the whole dialogue where it was counted in training: its own counts are taken out, or they would
            give the answer away.
    """

    items: tuple[int, ...]
    by_system: tuple[bool, ...]
    words: tuple[int, ...]
    own: tuple[int, ...] = ()


class Traits:
    """Likeness by the values of one field: the rarer a shared value, the more it says.

    Args:
        rows: ``[items, values]`` sparse, of length one each.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self._columns = rows.t().coalesce()

    @classmethod
    def of(cls, values: Sequence[Sequence[str]]) -> "Traits":
        """Weigh each item's values by the logarithm of how few items have them."""
        numbers: dict[str, int] = {}
        pairs = [(row, numbers.setdefault(value, len(numbers))) for row, held in enumerate(values) for value in held]
        rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        rarity = np.log1p(len(values) / np.maximum(np.bincount(columns, minlength=len(numbers)), 1))
        weights = rarity[columns]
        lengths = np.sqrt(np.bincount(rows, weights**2, minlength=len(values)))
        return cls(_sparse_rows(rows, columns, weights / lengths[rows], (len(values), len(numbers))))

    def likeness(self, profile: Float[Tensor, "items asked"]) -> Float[Tensor, "items asked"]:
        """Return each item's mean cosine to the items of a profile, whose weights sum to one."""
        return torch.sparse.mm(self.rows, torch.sparse.mm(self._columns, profile))


class Words:
    """BM25 of what was said against the items' texts, on the model's own word pieces.

    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework", with k1 = 1.2 and b = 0.75; a word
        that is said twice counts once.
    """

    def __init__(self, texts: Sequence[Sequence[int]], vocabulary: int, k1: float = 1.2, b: float = 0.75) -> None:
        rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        tokens = np.array([token for text in texts for token in text], dtype=np.int64)
        keys, counts = np.unique(rows * vocabulary + tokens, return_counts=True)
        rows, tokens = keys // vocabulary, keys % vocabulary
        lengths = np.bincount(rows, counts, minlength=len(texts))
        holders = np.bincount(tokens, minlength=vocabulary)
        rarity = np.log1p((len(texts) - holders + 0.5) / (holders + 0.5))
        damped = counts + k1 * (1 - b + b * lengths[rows] / max(1.0, lengths.mean() if len(texts) else 1.0))
        self.vocabulary = vocabulary
        self._rows = _sparse_rows(rows, tokens, rarity[tokens] * counts * (k1 + 1) / damped, (len(texts), vocabulary))

    def score(self, said: Sequence[Sequence[int]]) -> Float[Tensor, "items asked"]:
        """Return the score of every item for each list of token ids."""
        query = torch.zeros(self.vocabulary, len(said))
        for column, words in enumerate(said):
            query[torch.tensor(sorted(set(words)), dtype=torch.long), column] = 1
        return torch.sparse.mm(self._rows, query)


class Mentions:
    """In how many training dialogues each item, and each pair of items, is named.

    Args:
        counts: ``[items]``.
        pairs: ``[items, items]`` sparse, symmetric, nothing on its diagonal.
    """

    def __init__(self, counts: Tensor, pairs: Tensor) -> None:
        self.counts, self.pairs = counts, pairs

    @classmethod
    def count(cls, dialogues: Sequence[Sequence[int]], num_items: int) -> "Mentions":
        """Count; an item counts once a dialogue."""
        sets = [sorted(set(items)) for items in dialogues]
        flat = np.array([item for items in sets for item in items], dtype=np.int64)
        pairs = np.array([(a, b) for items in sets for a in items for b in items if a != b], dtype=np.int64)
        rows, columns = pairs.reshape(-1, 2).T
        counts = torch.from_numpy(np.bincount(flat, minlength=num_items).astype(np.float32))
        return cls(counts, _sparse_rows(rows, columns, np.ones(len(rows)), (num_items, num_items)))

    def weigh(
        self, profile: Float[Tensor, "items asked"], asked: Sequence[Asked]
    ) -> tuple[Float[Tensor, "items asked"], Float[Tensor, "items asked"]]:
        """Return how often each item is named, and how often together with a profile's items.

        Source: the normalisation is item-kNN's (Deshpande and Karypis, 2004), damped by one; each dialogue's own counts
            are left out exactly.
        """
        own = torch.zeros_like(profile)
        for column, moment in enumerate(asked):
            own[list(moment.own), column] = 1
        counts = self.counts.to(profile.device)[:, None] - own
        weights = profile / (counts + 1).sqrt()
        together = torch.sparse.mm(self.pairs.to(profile.device), weights)
        mine = weights * own
        together = (together - own * (mine.sum(0) - mine)).clamp(min=0)
        return counts, together / (counts + 1).sqrt()

    def padded(self, num_items: int) -> "Mentions":
        """Return the counts for a catalogue that has grown: new items were never named."""
        pairs = _sparse(self.pairs.indices(), self.pairs.values(), (num_items, num_items))
        return Mentions(F.pad(self.counts, (0, num_items - len(self.counts))), pairs)

    def tensors(self) -> dict[str, Tensor]:
        """Return the counts by name, to be saved."""
        return {"counts": self.counts, "places": self.pairs.indices().contiguous(), "values": self.pairs.values()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Mentions":
        """Return counts from saved tensors."""
        counts = tensors["counts"]
        return cls(counts, _sparse(tensors["places"], tensors["values"], (len(counts), len(counts))))


class Evidence:
    """All terms over one catalogue.

    Args:
        records: the items.
        fields: whose values are traits, see :func:`trait_fields`.
        texts: token ids of the items' words.
        vectors: ``[items, hidden]`` of the items' words.
        vocabulary: number of token ids.
        mentions: counted in training.
        decay: weight of each named item further back.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        fields: Sequence[str],
        texts: Sequence[Sequence[int]],
        vectors: Float[Tensor, "items hidden"],
        vocabulary: int,
        mentions: Mentions,
        decay: float,
    ) -> None:
        self.names = (*BASE_TERMS, *fields)
        self.vectors, self.mentions, self.decay = F.normalize(vectors, dim=1), mentions, decay
        self._words = Words(texts, vocabulary)
        self._traits = [Traits.of([values(record.get(field)) for record in records]) for field in fields]

    def weigh(
        self, asked: Sequence[Asked], dialogues: Float[Tensor, "asked hidden"]
    ) -> Float[Tensor, "asked items terms"]:
        """Return every term of every item, on the CPU.

        Args:
            asked: what is known.
            dialogues: vector of all that was said; zero where nothing was.
        """
        profile = self._profile(asked)
        counts, together = self.mentions.weigh(profile, asked)
        terms = [
            torch.log(counts.clamp(min=0) + 0.3),
            torch.log1p(30 * together),
            torch.log1p(self._words.score([moment.words for moment in asked])),
            10 * (self.vectors @ F.normalize(dialogues.float(), dim=1).T),
            *self._named(asked),
            *(torch.log1p(20 * traits.likeness(profile)) for traits in self._traits),
        ]
        return torch.stack(terms, dim=-1).transpose(0, 1)

    def _profile(self, asked: Sequence[Asked]) -> Float[Tensor, "items asked"]:
        """Return the named items as weights that sum to one, the last ones the heaviest."""
        profile = torch.zeros(len(self.vectors), len(asked))
        for column, moment in enumerate(asked):
            if moment.items:
                weights = self.decay ** torch.arange(len(moment.items) - 1, -1, -1.0)
                profile[list(moment.items), column] = weights / weights.sum()
        return profile

    def _named(self, asked: Sequence[Asked]) -> Float[Tensor, "2 items asked"]:
        """Return whether the user, and whether the system, named the item first."""
        flags = torch.zeros(2, len(self.vectors), len(asked))
        for column, moment in enumerate(asked):
            for item, by_system in zip(moment.items, moment.by_system, strict=True):
                flags[int(by_system), item, column] = 1
        return flags


BASE_TERMS = ("popularity", "together", "words", "dialogue", "named_by_user", "named_by_system")


def values(value: object) -> list[str]:
    """Return the different values of a field: a list, or a text with separators.

    >>> values("Action|Comedy|Action"), values("Jane Doe, John Roe"), values(None)
    (['action', 'comedy'], ['jane doe', 'john roe'], [])
    """
    if value is None:
        return []
    parts = value if isinstance(value, list | tuple) else _VALUES.split(str(value))
    return list(dict.fromkeys(part.strip().casefold() for part in map(str, parts) if part.strip()))


def trait_fields(records: Sequence[Mapping[str, Any]], least: float = 0.2) -> list[str]:
    """Return the fields that tell items apart by shared values: filled often enough, and seldom unique.

    >>> trait_fields([{"genre": "a|b", "code": "1"}, {"genre": "a", "code": "2"}, {"genre": "b", "code": "3"}])
    ['genre']
    """
    fields = sorted({name for record in records for name in record} - set(NO_TRAITS))
    return [field for field in fields if _is_shared([values(record.get(field)) for record in records], least)]


def _is_shared(held: Sequence[Sequence[str]], least: float) -> bool:
    filled = [row for row in held if row]
    different = len({value for row in filled for value in row})
    return len(filled) >= max(1, math.ceil(least * len(held))) and 1 < different < sum(map(len, filled))


def _sparse_rows(
    rows: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[Any], size: tuple[int, int]
) -> Tensor:
    return _sparse(torch.from_numpy(np.stack([rows, columns])), torch.from_numpy(weights.astype(np.float32)), size)


def _sparse(places: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(places, weights, size, check_invariants=True).coalesce()
