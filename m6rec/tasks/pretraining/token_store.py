"""Tokenised documents on disk, as a memory-mapped dataset: made once, streamed, cut to what a model can read.

Knows neither what the documents say nor what is learnt from them.
"""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m6rec.tasks.pretraining.corpus import Document
from m6rec.text.tokenize import Ids, TextTokenizer

SCHEMA = pa.schema([("kind", pa.string()), ("ids", pa.list_(pa.int32())), ("lengths", pa.list_(pa.int32()))])
_BATCH = 1000


@dataclass(frozen=True)
class Tokens:
    """One tokenised document.

    Args:
        kind: where it is from.
        pieces: token ids of each piece.
    """

    kind: str
    pieces: tuple[Ids, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


def room(num_tokens: Any, num_pieces: Any) -> Any:
    """Return the longest that a document can become under any objective, control tokens and blanks included.

    Works on numbers and arrays alike. Whole in the target, each piece has a [BOS] and an [EOS]; with a source there is
    one pair more; with blanks, at most one a piece, each stands in the source and again between two answers.

    >>> room(10, 2)
    18
    """
    return num_tokens + 2 * num_pieces + 4


class TokenStore(Sequence[Tokens]):
    """Tokenised documents, read as they are asked for.

    Args:
        path: an Arrow stream, as :func:`write_store` writes it.

    Attributes:
        num_pieces: ``[documents]`` int64.
    """

    def __init__(self, path: Path) -> None:
        import datasets

        self._table = datasets.Dataset.from_file(str(path))
        lengths = self._table.data.column("lengths").combine_chunks()
        self.num_pieces: NDArray[np.int64] = np.asarray(lengths.value_lengths(), dtype=np.int64)
        # Tokens before each piece of the whole store, and each document's first piece.
        self._before = np.r_[0, np.cumsum(lengths.flatten().to_numpy(), dtype=np.int64)]
        self._first = np.cumsum(self.num_pieces) - self.num_pieces

    def __len__(self) -> int:
        return len(self._table)

    def rooms(self, parts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the longest that each part can become.

        Args:
            parts: ``[parts, 3]`` document, first piece, and the piece behind the last one.
        """
        documents, starts, stops = parts.T
        begin, end = self._first[documents] + starts, self._first[documents] + stops
        rooms: NDArray[np.int64] = room(self._before[end] - self._before[begin], stops - starts)
        return rooms

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tokens]: ...
    def __getitem__(self, index: int | slice) -> Tokens | list[Tokens]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = self._table[int(index)]
        ids = np.array(row["ids"], dtype=np.int32)
        return Tokens(row["kind"], tuple(np.split(ids, np.cumsum(row["lengths"])[:-1])))


def write_store(documents: Iterable[Document], tokenizer: TextTokenizer, width: int, path: Path) -> None:
    """Tokenise documents into ``path``, a batch at a time; a long one becomes several, cut between its pieces.

    Args:
        documents: in any number; memory holds a batch of them.
        tokenizer: writes words, never control tokens.
        width: the most tokens that a document may need (see :func:`room`).
        path: to write; whole or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
            for batch in _batches(documents):
                tokens = zip(batch, _tokenised(batch, tokenizer), strict=True)
                cut = [
                    part
                    for document, whole in tokens
                    for part in (_ending(whole, width) if document.is_question else _cut(whole, width))
                ]
                columns = {
                    "kind": [part.kind for part in cut],
                    "ids": [np.concatenate(part.pieces) for part in cut],
                    "lengths": [[len(piece) for piece in part.pieces] for part in cut],
                }
                writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def store_name(*parts: object) -> str:
    """Return a file name that changes with anything the tokens depend on."""
    return f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}.arrow"


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    stream = iter(documents)
    while batch := list(itertools.islice(stream, _BATCH)):
        yield batch


def _tokenised(documents: Sequence[Document], tokenizer: TextTokenizer) -> Iterator[Tokens]:
    texts = dict.fromkeys(segment.text for whole in documents for piece in whole.pieces for segment in piece)
    known = dict(zip(texts, tokenizer.texts(list(texts)), strict=True))
    for document in documents:
        pieces = (
            [token for segment in piece for token in known[segment.text][: segment.budget_tokens]]
            for piece in document.pieces
        )
        yield Tokens(document.kind, tuple(np.array(piece, dtype=np.int32) for piece in pieces if piece))


def _cut(whole: Tokens, width: int) -> Iterator[Tokens]:
    """Yield a document in parts that fit; a piece that is too long by itself is cut too."""
    most = width - room(0, 1)
    pieces = [piece[at : at + most] for piece in whole.pieces for at in range(0, len(piece), most)]
    part: list[Ids] = []
    for piece in pieces:
        if part and room(sum(map(len, part)) + len(piece), len(part) + 1) > width:
            yield Tokens(whole.kind, tuple(part))
            part = []
        part.append(piece)
    if part:
        yield Tokens(whole.kind, tuple(part))


def _ending(whole: Tokens, width: int) -> Iterator[Tokens]:
    """Yield the last pieces of a question that fit, if more than its last two (how, and what) do."""
    pieces = list(whole.pieces)
    while len(pieces) > 2 and room(sum(map(len, pieces)), len(pieces)) > width:
        del pieces[0]
    if len(pieces) > 1 and room(sum(map(len, pieces)), len(pieces)) <= width:
        yield Tokens(whole.kind, tuple(pieces))
