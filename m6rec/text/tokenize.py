"""From layouts to token ids, and the places of those ids in the tree.

Words from a record never become a control token, nor any special token of the model. This module knows no template.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import BackboneError
from m6rec.text.budget import fit
from m6rec.text.segments import BLANK, CONTROL_TOKENS, Layout

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class TokenizedLayout:
    """A layout in tokens; all arrays are ``[tokens]`` int32, the trunk first.

    Args:
        ids: token ids.
        positions: trunk 0, 1, ...; a branch goes on from the last trunk token that it sees.
        blocks: time of each token; a branch's is the block that it hangs on.
        branches: 0 = trunk, 1, 2, ... = branch number.
        segments: index into ``layout.segments`` (a dropped segment's index does not occur).
        dropped: how many events did not fit.
    """

    ids: Ids
    positions: Ids
    blocks: Ids
    branches: Ids
    segments: Ids
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class TextTokenizer:
    """Turns words and layouts into token ids.

    Args:
        tokenizer: a Hugging Face tokenizer with :data:`CONTROL_TOKENS` added.
        cache_size: how many different texts are remembered; changes only speed.

    Attributes:
        pad_id: what :func:`m6rec.text.batch.collate` pads with.
        special_ids: every special or added token, the unknown one included: no answer holds one.

    Raises:
        BackboneError: the tokenizer lacks a control token.
    """

    def __init__(self, tokenizer: Any, cache_size: int = 100_000) -> None:
        self.tokenizer, self.cache_size = tokenizer, cache_size
        vocabulary = tokenizer.get_added_vocab()
        for token in CONTROL_TOKENS:
            if token not in vocabulary:
                raise BackboneError(
                    f"the tokenizer lacks the control token {token}; do: "
                    "tokenizer.add_tokens(list(CONTROL_TOKENS), special_tokens=True)"
                )
        self.control_ids = {token: int(vocabulary[token]) for token in CONTROL_TOKENS}
        mask = tokenizer.mask_token_id
        self.control_ids[BLANK] = self.control_ids["[BOS]"] if mask is None else int(mask)
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self._forbidden = _forbidden(tokenizer)
        self.special_ids = self._forbidden | frozenset(tokenizer.all_special_ids)
        self._cache: dict[str, Ids] = {}
        self._space = ""
        self._space = self._separator()

    def text(self, text: str) -> list[int]:
        """Return the ids of words: never a control or special token (the unknown token excepted)."""
        return self._arrays([text])[text].tolist()

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts; fast, because they are tokenised together."""
        arrays = self._arrays(texts)
        return [arrays[text].tolist() for text in texts]

    def words(self, ids: Sequence[int]) -> str:
        """Return tokens in words."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def layout(self, layout: Layout, max_tokens: int | None = None) -> TokenizedLayout:
        """Return ``layout`` in tokens.

        Args:
            layout: what to tokenise.
            max_tokens: the longest path from the first trunk token to the end of a branch, which is the number of
                positions that a model needs. What is too long loses its oldest events first, then the tails of its
                longest texts, and never a control token.

        Raises:
            ConfigError: ``max_tokens`` does not even hold the control tokens.
        """
        return self.layouts([layout], max_tokens)[0]

    def layouts(self, layouts: Sequence[Layout], max_tokens: int | None = None) -> list[TokenizedLayout]:
        """Return many layouts in tokens; fast, because all their new texts are tokenised together."""
        arrays = self._arrays(
            [segment.text for layout in layouts for segment in layout.segments if segment.role != "control"]
        )
        return [_place(layout, self._ids(layout, arrays), max_tokens) for layout in layouts]

    def _ids(self, layout: Layout, arrays: dict[str, Ids]) -> list[Ids]:
        """Return each segment's ids, cut to its own budget."""
        return [
            np.array([self.control_ids[segment.text]], dtype=np.int32)
            if segment.role == "control"
            else arrays[segment.text][: segment.budget_tokens]
            for segment in layout.segments
        ]

    def _arrays(self, texts: Iterable[str]) -> dict[str, Ids]:
        wanted = dict.fromkeys(texts)
        known = {text: self._cache[text] for text in wanted if text in self._cache}
        new = [text for text in wanted if text not in known]
        if new:
            known.update(zip(new, self._encode(new), strict=True))
            self._remember(known, new)
        return known

    def _remember(self, known: dict[str, Ids], new: list[str]) -> None:
        self._cache.update({text: known[text] for text in new[-self.cache_size :]})
        # Dictionaries keep their order: the oldest texts go first.
        for text in list(self._cache)[: max(0, len(self._cache) - self.cache_size)]:
            del self._cache[text]

    def _encode(self, texts: list[str]) -> list[Ids]:
        rows = self._call(texts)
        for index, row in enumerate(rows):
            if not self._forbidden.isdisjoint(row):
                rows[index] = self._defused(texts[index])
        return [np.array(row, dtype=np.int32) for row in rows]

    def _call(self, texts: list[str]) -> list[list[int]]:
        # A lone surrogate is no text: the tokenizers would raise on it.
        valid = [self._space + text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        rows: list[list[int]] = self.tokenizer(
            valid,
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return rows

    def _defused(self, text: str) -> list[int]:
        """Tokenise a text in which a special token was read: ``split_special_tokens`` covers neither added tokens that
        are not marked special nor the pieces that a Unigram vocabulary lists for its own control symbols.
        """
        names = sorted(self.tokenizer.convert_ids_to_tokens(sorted(self._forbidden)), key=len, reverse=True)
        pattern = re.compile("|".join(re.escape(name) for name in names if len(name) > 1), re.IGNORECASE)
        apart = pattern.sub(lambda match: " ".join(match.group()), text)
        return [token for token in self._call([apart])[0] if token not in self._forbidden]

    def _separator(self) -> str:
        """Return what stands before a text: a byte-level vocabulary writes a word inside a sentence with its space."""
        first, second, both, spaced = self._call(["a", "b", "a b", " b"])
        return " " if both == first + spaced and both != first + second else ""


def _forbidden(tokenizer: Any) -> frozenset[int]:
    """Return every id that words must never become: all special and added tokens.

    The unknown token is what strange characters become, and allowed; unless it is a control symbol at the same time, as
    GPT-2's is.
    """
    names = ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "pad_token_id", "mask_token_id")
    named = {getattr(tokenizer, name, None) for name in names}
    ids = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return frozenset(ids - ({tokenizer.unk_token_id} - named))


def _place(layout: Layout, ids: list[Ids], max_tokens: int | None) -> TokenizedLayout:
    dropped = 0
    if max_tokens is not None:
        lengths, dropped = fit(layout, [len(row) for row in ids], max_tokens)
        ids = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    segments, counts = layout.segments, [len(row) for row in ids]
    owners = [0] * len(layout.trunk) + [n for n, branch in enumerate(layout.branches, start=1) for _ in branch]
    blocks = np.repeat(np.array([segment.block for segment in segments], dtype=np.int32), counts)
    branches = np.repeat(np.array(owners, dtype=np.int32), counts)
    return TokenizedLayout(
        ids=np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32),
        positions=_positions(blocks, branches),
        blocks=blocks,
        branches=branches,
        segments=np.repeat(np.arange(len(segments), dtype=np.int32), counts),
        dropped=layout.dropped + dropped,
    )


def _positions(blocks: Ids, branches: Ids) -> Ids:
    """Return positions: the trunk counts up; a branch goes on after the last trunk token of its block or earlier.

    >>> _positions(np.array([0, 1, 1, 2, 1, 1, 2]), np.array([0, 0, 0, 0, 1, 1, 2])).tolist()
    [0, 1, 2, 3, 3, 4, 4]
    """
    trunk = blocks[branches == 0]
    positions = np.arange(len(blocks), dtype=np.int32)
    starts = np.flatnonzero(np.diff(branches, prepend=0))
    for start, end in itertools.pairwise([*starts, len(blocks)]):
        seen = np.flatnonzero(trunk <= blocks[start])
        base = seen[-1] + 1 if len(seen) else 0
        positions[start:end] = base + np.arange(end - start)
    return positions
