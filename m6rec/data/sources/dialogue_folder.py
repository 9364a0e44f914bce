"""Recommendation dialogues stored turn by turn, as the iEvaLM release has them for ReDial and OpenDialKG.

A row is one answer of the system: the texts before it (the user speaks first; before an answer both speak in turn), the
items and other entities named in them, the items recommended now, and the answer. Knows neither of the two datasets.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from m6rec.data.readers import read_jsonl
from m6rec.data.sources.folders import FolderSource, find, read_object, with_columns
from m6rec.errors import DataError, RowError

_SPLITS = ("train", "valid", "test")


@dataclass
class Dialogue:
    """One dialogue: its texts, and the items named in each turn, in order."""

    split: str
    texts: list[str] = field(default_factory=list)
    items: dict[int, list[str]] = field(default_factory=dict)
    answers: set[int] = field(default_factory=set)

    def name(self, turn: int, item: str) -> None:
        """Note that ``item`` was named in ``turn``; a repetition within a turn counts once."""
        named = self.items.setdefault(turn, [])
        if item not in named:
            named.append(item)

    def by_system(self) -> list[bool]:
        """Return for each text whether the system spoke it: all answers, and every second text before one."""
        spoken = [False] * len(self.texts)
        for number in reversed(range(1, len(spoken))):
            spoken[number] = number in self.answers or (number + 1 < len(spoken) and not spoken[number + 1])
        return spoken

    def turns(self) -> Iterator[dict[str, Any]]:
        """Yield the turns; an empty text (a user who lets the system begin) is left out."""
        for number, (text, system) in enumerate(zip(self.texts, self.by_system(), strict=True)):
            if text.strip():
                yield {"speaker": "SYSTEM" if system else "USER", "text": text, "items": self.items.get(number, [])}


class DialogueFolder(FolderSource):
    """A folder of ``eval_SPLIT.jsonl`` and ``id2info.json``.

    Args:
        path: the folder.
        keep_split: give the files' split on; otherwise dialogues are left to be split as wholes.
    """

    def __init__(self, path: str, keep_split: bool) -> None:
        self._path, self._keep_split = path, keep_split

    def describe(self, info: Mapping[str, Any]) -> dict[str, str | None]:
        """Return our columns of one item's entry in ``id2info.json``."""
        raise NotImplementedError

    def items(self) -> Iterator[pa.Table]:
        """Yield the items that the folder describes."""
        rows = [{"item": key, **self.describe(info)} for key, info in self._info().items()]
        if rows:
            yield pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in rows[0]})

    def events(self) -> Iterator[pa.Table]:
        """Yield, dialogue by dialogue, what the user mentions and the system recommends, each item once."""
        columns: dict[str, list[str]] = {"user": [], "item": [], "verb": [], "split": []}
        for key, dialogue in self._dialogues().items():
            seen: set[str] = set()
            by_system = dialogue.by_system()
            for turn in sorted(dialogue.items):
                for item in dialogue.items[turn]:
                    if item not in seen:
                        seen.add(item)
                        values = (key, item, ("mention", "recommend")[by_system[turn]], dialogue.split)
                        for column, value in zip(columns.values(), values, strict=True):
                            column.append(value)
        yield pa.table(columns if self._keep_split else {k: v for k, v in columns.items() if k != "split"})

    def conversations(self) -> Iterator[dict[str, Any]]:
        """Yield every dialogue up to its last recommendation."""
        for key, dialogue in self._dialogues().items():
            split = {"split": dialogue.split} if self._keep_split else {}
            yield {"id": key, **split, "turns": list(dialogue.turns())}

    def _info(self) -> dict[str, Any]:
        path = find(self._path, "id2info.json")
        if path is None:
            raise DataError(f"{self._path} has no id2info.json (or .gz); is it the right folder?")
        return read_object(path)

    def _dialogues(self) -> dict[str, Dialogue]:
        """Return all dialogues; a few thousand fit in memory, and their turns may stand in several files."""
        keys: dict[str, str] = {}
        for key, info in self._info().items():
            keys.setdefault(info["name"], key)
        files = {split: path for split in _SPLITS if (path := find(self._path, f"eval_{split}.jsonl"))}
        if not files:
            raise DataError(f"{self._path} has no eval_train, eval_valid or eval_test.jsonl; is it the right folder?")
        dialogues: dict[str, Dialogue] = {}
        for split, path in files.items():
            for number, row in _rows(path):
                try:
                    dialogue = dialogues.setdefault(str(row["dialog_id"]), Dialogue(split))
                    _add(dialogue, row, keys)
                except (KeyError, TypeError) as error:
                    raise RowError(path, number, str(error).strip("'"), f"cannot be read: {error!r}") from error
        return dialogues


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for chunk in with_columns(read_jsonl(path), "dialog_id", "context", "entity", "rec", "resp"):
        yield from enumerate(chunk.table.to_pylist(), start=chunk.row)


def _add(dialogue: Dialogue, row: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    """Add one turn of the system; turns come in any order."""
    texts = [*row["context"], row["resp"]]
    known, answer = len(dialogue.texts), len(texts) - 1
    dialogue.texts.extend(texts[known:])
    dialogue.answers.add(answer)
    for name in row["rec"]:
        if name in keys:
            dialogue.name(answer, keys[name])
    named = {item for items in dialogue.items.values() for item in items}
    for name in row["entity"]:
        if name in keys and keys[name] not in named:
            dialogue.name(_turn_of(name, texts[:answer]), keys[name])


def _turn_of(name: str, texts: list[str]) -> int:
    """Return the first turn whose text holds a title (with or without its year), or the user's last one."""
    short = name.partition(" (")[0].lower()
    return next((number for number, text in enumerate(texts) if short in text.lower()), max(len(texts) - 1, 0))
