"""Dialogues as anybody writes them, and replies to them. Knows no screen, and keeps no state between two calls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m6rec.assemble import Run
from m6rec.data.dialogues import Speaker, Turn
from m6rec.decoding import DecodingConfig
from m6rec.errors import DataError
from m6rec.requests import Recommendation, named
from m6rec.tasks.conversation.reply import Replier, Said
from m6rec.tasks.conversation.task import Conversation

Turns = Sequence[str | Mapping[str, Any]]


@dataclass(frozen=True)
class Reply:
    """What the system says next.

    Args:
        text: the words.
        items: the catalogue's items that they name, in order, each with the probability that it is the one to
            recommend; none where it asks back.
        confidence: how much probability the first ten items hold; below the run's threshold it asks back.
    """

    text: str
    items: tuple[Recommendation, ...]
    confidence: float

    @property
    def turn(self) -> dict[str, Any]:
        """The reply as a turn, to go on with."""
        return {"speaker": "SYSTEM", "text": self.text, "items": [item.id for item in self.items]}

    def __str__(self) -> str:
        return self.text


def talk(run: Run, dialogues: Sequence[Turns], decoding: DecodingConfig | None) -> list[Reply]:
    """Return the reply to each dialogue."""
    task = _talks(run)
    found = Replier(task, run.backbone, decoding).reply([read_turns(task, turns) for turns in dialogues])
    return [_reply(task, said) for said in found]


def talk_stream(run: Run, turns: Turns, decoding: DecodingConfig | None) -> Iterator[str | Reply]:
    """Yield the reply to a dialogue in pieces, and at the end whole."""
    task = _talks(run)
    for piece in Replier(task, run.backbone, decoding).stream(read_turns(task, turns)):
        yield _reply(task, piece) if isinstance(piece, Said) else piece


def suggest(run: Run, turns: Turns, k: int) -> list[Recommendation]:
    """Return the ``k`` items most likely to be recommended next; what was named already is left out."""
    task = _talks(run)
    scores = task.log_probabilities(run.backbone, [read_turns(task, turns)], repeat=False)[0]
    best = scores.topk(min(k, int(task.catalogue.offered.sum())))
    pairs = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
    return [named(task.catalogue.record(place), score) for place, score in pairs if score > 0]


def read_turns(task: Conversation, turns: Turns) -> list[Turn]:
    """Return turns with the items that they name.

    A text alone is said by the two in turn, the last one by the user. What a text says is data: a speaker's mark or an
    instruction inside it stays words of that turn.

    Raises:
        DataError: a turn that cannot be read, or an item that the catalogue lacks.
    """
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        raise DataError(f"got a dialogue of type {type(turns).__name__}, expected a list of turns")
    speakers: tuple[Speaker, Speaker] = ("USER", "SYSTEM")
    return [_turn(task, turn, speakers[(len(turns) - 1 - number) % 2], number + 1) for number, turn in enumerate(turns)]


def _turn(task: Conversation, turn: str | Mapping[str, Any], speaker: Speaker, number: int) -> Turn:
    if isinstance(turn, str):
        turn = {"speaker": speaker, "text": turn}
    if not isinstance(turn, Mapping) or not isinstance(turn.get("text"), str):
        raise DataError(f"turn {number}: got {turn!r}, expected a text, or a mapping with `speaker` and `text`")
    who = str(turn.get("speaker", speaker)).upper()
    if who not in ("USER", "SYSTEM"):
        raise DataError(f"turn {number}: got speaker {turn['speaker']!r}, expected USER or SYSTEM")
    items = turn.get("items")
    places = _named(task, turn["text"]) if items is None else [_place(task, item, number) for item in items]
    return Turn("SYSTEM" if who == "SYSTEM" else "USER", turn["text"], tuple(dict.fromkeys(places)))


def _named(task: Conversation, text: str) -> list[int]:
    return [found.item for found in task.words.titles.find(text)]


def _place(task: Conversation, item: object, number: int) -> int:
    place = task.catalogue.find(str(item))
    if place is None:
        raise DataError(f"turn {number}: got the item {item!r}, which the catalogue lacks; give its id or title")
    return place


def _talks(run: Run) -> Conversation:
    assert isinstance(run.task, Conversation)
    return run.task


def _reply(task: Conversation, said: Said) -> Reply:
    items = tuple(named(task.catalogue.record(item.place), item.probability) for item in said.items)
    return Reply(said.text, items, said.confidence)
