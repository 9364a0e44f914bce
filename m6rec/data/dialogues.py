"""Dialogues: turns of a user and a system, and the items that each turn names. Knows no words and no model."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import SPLIT_CODES, Histories, Queries, Split
from m6rec.data.schema import CONVERSATIONS_FILE
from m6rec.data.store import Dataset
from m6rec.errors import DataError

Speaker = Literal["USER", "SYSTEM"]


@dataclass(frozen=True)
class Turn:
    """What one of the two said at a time.

    Args:
        speaker: who.
        text: the words; data, whatever they say.
        items: ids of the items that they name, in order.
    """

    speaker: Speaker
    text: str
    items: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """A whole dialogue.

    Args:
        key: its name in the source.
        turns: in order.
    """

    key: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Moment:
    """A point at which the system is to speak.

    Args:
        number: of the dialogue among those of its split.
        turns: what was said before.
        reply: what the system then said.
    """

    number: int
    turns: tuple[Turn, ...]
    reply: Turn

    @property
    def recommends(self) -> bool:
        """Whether the reply names items."""
        return bool(self.reply.items)


def read_dialogues(dataset: Dataset, split: Split) -> list[Dialogue]:
    """Return the dialogues of a split, in the order of the file; none where the dataset has none.

    Raises:
        DataError: a line that is no dialogue.
    """
    path = dataset.folder / CONVERSATIONS_FILE
    if not path.is_file():
        return []
    found = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if row["split"] == SPLIT_CODES[split]:
                    turns = tuple(Turn(turn["speaker"], turn["text"], tuple(turn["items"])) for turn in row["turns"])
                    found.append(Dialogue(row["id"], turns))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: not a dialogue ({error!r}); prepare the dataset again"
                ) from error
    return found


def moments(dialogues: Sequence[Dialogue]) -> Iterator[Moment]:
    """Yield every point at which the system speaks, the first turn included."""
    for number, dialogue in enumerate(dialogues):
        for place, turn in enumerate(dialogue.turns):
            if turn.speaker == "SYSTEM":
                yield Moment(number, dialogue.turns[:place], turn)


def named(turns: Sequence[Turn]) -> list[int]:
    """Return the items that turns name, each once, in the order in which they first came up."""
    return list(dict.fromkeys(item for turn in turns for item in turn.items))


def as_queries(asked: Sequence[Moment], num_items: int) -> Queries:
    """Return recommending moments as queries to rankers, one a recommended item, as published figures count them.

    The users of the queries are the moments' numbers, so that whoever also reads the words finds them again; a user's
    history is what was named before. Evaluate with ``mask_history=False``: what was named may be recommended.

    Raises:
        DataError: a moment without items.
    """
    if not all(moment.recommends for moment in asked):
        raise DataError("got a moment at which nothing is recommended, expected items in every reply")
    offsets, items = _rows([named(moment.turns) for moment in asked])
    ends, targets = _rows([list(dict.fromkeys(moment.reply.items)) for moment in asked])
    return Queries(
        history=Histories(offsets, items, np.zeros(len(items), dtype=np.int8), num_items),
        users=np.repeat(np.arange(len(asked), dtype=np.int32), np.diff(ends)),
        target_offsets=np.arange(len(targets) + 1, dtype=np.int64),
        targets=targets,
    )


def _rows(lists: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    offsets = np.r_[0, np.cumsum([len(row) for row in lists])].astype(np.int64)
    return offsets, np.array([item for row in lists for item in row], dtype=np.int32)
