"""Everything in a dataset that can be read as text: behaviour, items, reviews, dialogues, and any text file.

A document is a list of pieces (events, sentences, turns), a piece the segments that a prompt makes of it, so that the
words are those of the templates and are tokenised as every task tokenises them. Knows no objective and no tokenizer.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from m6rec.data.dialogues import read_dialogues
from m6rec.data.histories import SPLIT_CODES, Split
from m6rec.data.store import Dataset
from m6rec.errors import DataError
from m6rec.text.dialogue import Turns, turn_segments
from m6rec.text.prompt import Events, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.segments import Segment

Kind = Literal["behaviour", "items", "reviews", "dialogues"]
KINDS: tuple[Kind, ...] = ("behaviour", "items", "reviews", "dialogues")
FILES, TITLES = "files", "titles"
# Of a text file, which lines are held out: every fiftieth for validation, the next one for test.
HELD_OUT_LINES = {"valid": 48, "test": 49}
_LINES = 50
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Document:
    """Text that belongs together.

    Args:
        kind: where it is from: one of :data:`KINDS`, ``"files"``, or ``"titles"`` (what a user chose next).
        pieces: in order; each is one or more segments.
        is_question: whether its end is what counts: where it is too long, its beginning goes.
    """

    kind: str
    pieces: tuple[tuple[Segment, ...], ...]
    is_question: bool = False


class Corpus:
    """The documents of a dataset.

    Args:
        dataset: the prepared folder.
        renderer: the domain's words.
        prompt: how a task shows a history; its trunk gives the words of behaviour.
        kinds: which parts of the dataset are read.
        files: UTF-8 text files, one document a line.

    Raises:
        DataError: a text file that is not there.
    """

    def __init__(
        self, dataset: Dataset, renderer: Renderer, prompt: Prompt, kinds: Sequence[Kind], files: Sequence[str] = ()
    ) -> None:
        self.dataset, self.renderer, self.prompt = dataset, renderer, prompt
        self.kinds, self.files = tuple(kinds), tuple(Path(file).expanduser() for file in files)
        for file in self.files:
            if not file.is_file():
                raise DataError(f"got the text file {file}, which is not there; look at task.files")
        self._events = next((part.options for part in prompt.trunk if isinstance(part.options, Events)), Events())

    def documents(self, split: Split = "train") -> Iterator[Document]:
        """Yield the documents of a split, in the order of the dataset; nothing of a later split is in any of them."""
        readers: dict[str, Callable[[Split], Iterator[Document]]] = {
            "behaviour": self._behaviour if split == "train" else self._titles,
            "items": self._items,
            "reviews": self._reviews,
            "dialogues": self._dialogues,
        }
        for kind in self.kinds:
            yield from readers[kind](split)
        for file in self.files:
            yield from _lines(file, split)

    def texts(self) -> Iterator[str]:
        """Yield every different text of the training documents once: what a tokenizer is trained on."""
        seen: set[int] = set()
        for document in self.documents():
            for text in (segment.text for piece in document.pieces for segment in piece):
                if hash(text) not in seen:
                    seen.add(hash(text))
                    yield text

    def _behaviour(self, split: Split) -> Iterator[Document]:
        """Yield every user's training events, as many in a document as the prompt shows at once."""
        rows = self._rows("train")
        for user in range(self.dataset.num_users):
            own = rows(user)
            for start in range(0, len(own), self._events.limit):
                pieces = self._history(user, own[start : start + self._events.limit])
                if pieces:
                    yield Document("behaviour", pieces)

    def _titles(self, split: Split) -> Iterator[Document]:
        """Yield what each user chose next: the history, how they chose (the stub), and the item's title alone."""
        queries, known = self.dataset.histories().queries(split), self._rows(split)
        for number, user in enumerate(queries.users.tolist()):
            item = self.dataset.item_record(int(queries.targets_of(number)[0]))
            title = " ".join(str(item.get("title") or "").split())
            rows = known(user)[-self._events.limit :]
            if not title or queries.rows is None:
                continue
            stub = self._stub(int(queries.rows[number]), rows[-1:])
            yield Document(TITLES, (*self._history(user, rows), *_text(stub), *_text(title)), is_question=True)

    def _stub(self, row: int, before: Sequence[int]) -> str:
        """Return how an event was done, as the prompt says it of events in a history (at least a word)."""
        counts_on = self._events.time == "later" and before
        previous = self.dataset.event_record(before[0]).get("time") if counts_on else None
        return self.renderer.event(self.dataset.event_record(row), None, previous)[0] or "then"

    def _rows(self, split: Split) -> Callable[[int], list[int]]:
        """Return user -> their events before ``split`` (of training: all), as rows of the table."""
        history = self.dataset.histories().before(split)
        rows = history.rows if history.rows is not None else np.arange(history.num_events)
        return lambda user: rows[history.of(user)].tolist()

    def _history(self, user: int, rows: Sequence[int]) -> tuple[tuple[Segment, ...], ...]:
        """Return a history's pieces: the profile, then each event with its stub."""
        events = [self.dataset.event_record(row) for row in rows]
        text = UserText(profile=self.dataset.user_record(user), events=events)
        pieces: dict[str, list[Segment]] = {}
        for segment in self.prompt.layout(self.renderer, text).trunk:
            if segment.role != "control":
                pieces.setdefault(_owner(segment), []).append(segment)
        return tuple(map(tuple, pieces.values()))

    def _items(self, split: Split) -> Iterator[Document]:
        """Yield every item: its words, then its description (items are no secret: nothing of them is held out)."""
        if split == "train":
            for record in self.dataset.item_records():
                described = record.get("description")
                yield Document("items", (*_text(self.renderer.item(record)), *_sentences(described or "")))

    def _reviews(self, split: Split) -> Iterator[Document]:
        """Yield what was written about an item: its words, the reason, the text."""
        if self.dataset.reviews is None:
            return
        for row in self.dataset.reviews:
            text = row["text"] or row["summary"]
            if row["split"] == SPLIT_CODES[split] and text:
                item = self.renderer.item(self.dataset.item_record(row["item"]))
                yield Document("reviews", (*_text(item), *_text(row["reason"] or ""), *_sentences(text)))

    def _dialogues(self, split: Split) -> Iterator[Document]:
        """Yield dialogues, a piece for each turn, the speaker's mark before the words."""
        for dialogue in read_dialogues(self.dataset, split):
            pieces: dict[str, list[Segment]] = {}
            for segment in turn_segments(Turns(limit=len(dialogue.turns)), dialogue.turns):
                pieces.setdefault(_owner(segment), []).append(segment)
            if pieces:
                yield Document("dialogues", tuple(map(tuple, pieces.values())))


def _owner(segment: Segment) -> str:
    """Return what a segment is part of: an event's stub and object belong together, a turn's mark and words."""
    return segment.name.rpartition(".")[0] if segment.name.startswith(("event.", "turn.")) else segment.name


def _text(text: str) -> tuple[tuple[Segment, ...], ...]:
    """Return one piece of one segment, or no piece where there are no words."""
    return ((Segment("text", text, "answer"),),) if text else ()


def _sentences(text: str) -> tuple[tuple[Segment, ...], ...]:
    """Cut a text into sentences, a piece each.

    >>> [piece[0].text for piece in _sentences("It is fine. Is it? Yes.")]
    ['It is fine.', 'Is it?', 'Yes.']
    """
    sentences = _SENTENCE.split(" ".join(text.split()))
    return tuple(piece for sentence in sentences for piece in _text(sentence))


def _lines(file: Path, split: Split) -> Iterator[Document]:
    """Yield a text file's documents, one a line."""
    held_out = set(HELD_OUT_LINES.values())
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                place = number % _LINES
                wanted = place not in held_out if split == "train" else place == HELD_OUT_LINES[split]
                if wanted and line.strip():
                    yield Document(FILES, _sentences(line))
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text ({error}); convert it first") from error
