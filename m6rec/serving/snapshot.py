"""What a catalogue in service differs in from the run's own, as one table. Knows no journal and no request."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m6rec.api import Recommender
from m6rec.errors import JournalError
from m6rec.runs import CARD_FILE
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.generation.task import Generation
from m6rec.tasks.pretraining.task import Pretraining
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.zeroshot.task import ZeroShot

# Tasks that know an item by its words alone; an item of a place that they have not counted is one without counts.
READERS = (Ranking, ZeroShot, Generation, Pretraining)
FORMAT = 1
ITEMS, VECTORS = "items.json", "vectors.safetensors"
Item = dict[str, Any]


@dataclass
class Snapshot:
    """The last word on every item that was ever changed.

    Args:
        items: id -> all its fields, ``id`` among them; ``None`` = it was removed.
        anew: ids that came back after they were removed: what training has learnt of the former item is not theirs.
        vectors: id -> ``[hidden]`` the backbone's vector of its text, where it is known.
        reader: of the run whose backbone made the vectors (:func:`reader_of`).
    """

    items: dict[str, Item | None] = field(default_factory=dict)
    anew: set[str] = field(default_factory=set)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    reader: str = ""

    @classmethod
    def of(cls, changes: Iterable[dict[str, Any]]) -> "Snapshot":
        """Return what a journal's changes come to, oldest first."""
        made = cls()
        for change in changes:
            for item in change.get("put", []):
                made._note(item["id"], item)
            for key in change.get("remove", []):
                made._note(key, None)
        return made

    def take(self, later: "Snapshot") -> None:
        """Change what a later one says."""
        for key, item in later.items.items():
            self._note(key, item)
        self.anew |= later.anew

    def _note(self, key: str, item: Item | None) -> None:
        if item is not None and key in self.items and self.items[key] is None:
            self.anew.add(key)
        self.items.pop(key, None)  # the order of the table is that of the last changes
        self.vectors.pop(key, None)
        self.items[key] = item

    def with_vectors(self, recommender: Recommender) -> "Snapshot":
        """Return a copy with the vectors that a recommender has of these items."""
        catalogue = recommender.catalog.retrieval.catalogue
        assert catalogue.vectors is not None
        places = {key: catalogue.find(key) for key, item in self.items.items() if item is not None}
        vectors = {key: catalogue.vectors[place].clone() for key, place in places.items() if place is not None}
        return Snapshot(dict(self.items), set(self.anew), vectors, reader_of(recommender))

    def save(self, folder: Path) -> None:
        """Write two files into an empty folder."""
        table = {"format": FORMAT, "reader": self.reader, "items": self.items, "anew": sorted(self.anew)}
        (folder / ITEMS).write_text(json.dumps(table), encoding="utf-8")
        save_file(self.vectors, folder / VECTORS)

    @classmethod
    def load(cls, folder: Path) -> "Snapshot":
        """Read what ``save`` wrote.

        Raises:
            JournalError: it is damaged, or of another version.
        """
        try:
            table = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
            if table["format"] != FORMAT:
                raise JournalError(f"{folder} has format {table['format']}, this m6rec reads {FORMAT}")
            return cls(table["items"], set(table["anew"]), load_file(folder / VECTORS), table["reader"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise JournalError(f"{folder} is damaged ({error}); restore it from a copy") from error


def reader_of(recommender: Recommender) -> str:
    """Return what tells apart runs whose backbones give other vectors."""
    return hashlib.sha256((recommender.team.retriever().folder / CARD_FILE).read_bytes()).hexdigest()[:16]


def apply(changes: Snapshot, recommender: Recommender) -> None:
    """Do to a recommender's catalogues what a table says: one new index, however long it is."""
    catalogue = recommender.catalog.retrieval.catalogue
    put = [item for item in changes.items.values() if item is not None]
    gone = [
        key for key, item in changes.items.items() if (item is None or key in changes.anew) and catalogue.offers(key)
    ]
    if not put and not gone:
        return
    vectors = changes.vectors if changes.reader == reader_of(recommender) else {}
    with recommender.catalog.changing():
        recommender.catalog.remove(gone)
        held, new = _split(put, catalogue)
        for items, do in ((held, recommender.catalog.change), (new, recommender.catalog.add)):
            read = [item for item in items if item["id"] in vectors]
            unread = [item for item in items if item["id"] not in vectors]
            if read:
                do(read, torch.stack([vectors[item["id"]] for item in read]))
            if unread:
                do(unread)
    _tell_the_others(recommender, put, gone)


def _tell_the_others(recommender: Recommender, put: list[Item], gone: list[str]) -> None:
    """Let the runs beside the one that retrieves know these items, where they read items by their words.

    One that holds numbers of each item goes on with those of training, and has none that is gone.
    """
    for run in recommender.team.runs:
        catalogue = run.task.catalogue
        if run is recommender.team.retriever():
            continue
        catalogue.remove([key for key in gone if catalogue.offers(key)])
        if not isinstance(run.task, READERS):
            continue
        held, new = _split(put, catalogue)
        for items, do in ((held, catalogue.change), (new, catalogue.add)):
            records = [{name: value for name, value in item.items() if name != "id"} for item in items]
            do([item["id"] for item in items], records, [run.renderer.item(record) for record in records])


def _split(items: list[Item], catalogue: Catalogue) -> tuple[list[Item], list[Item]]:
    """Return the items that are on offer, and those that are not."""
    held = [item for item in items if catalogue.offers(item["id"])]
    return held, [item for item in items if not catalogue.offers(item["id"])]
