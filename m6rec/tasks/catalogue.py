"""The catalogue that a run carries: items as records and words, with the backbone's vector of each.

Items can be added and removed without retraining: they are known by their text. Knows no task.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m6rec.data.histories import Histories
from m6rec.data.store import Dataset
from m6rec.errors import DataError, RunError
from m6rec.text.render import Renderer

Record = Mapping[str, Any]


@dataclass
class Catalogue:
    """Items by position; positions never change, a removed item only stops being offered.

    Args:
        keys: the log's own id of each item.
        records: title and the other fields of each item.
        texts: the words of each item.
        ids: ``[num_items]`` int64 number of the learnt residual, -1 where training has not met the item.
        offered: ``[num_items]`` bool, ``False`` once removed.
        vectors: ``[num_items, ...]`` what the task reads out of each text, such as the backbone's vector of it;
            ``None`` before encoding.
    """

    keys: list[str]
    records: list[Record]
    texts: list[str]
    ids: NDArray[np.int64]
    offered: NDArray[np.bool_]
    vectors: Float[Tensor, "items *shape"] | None = None

    def __post_init__(self) -> None:
        self._places = {key: place for place, key in enumerate(self.keys)}
        self._titles: dict[str, int] = {}
        for place, record in enumerate(self.records):
            self._titles.setdefault(_fold(record.get("title")), place)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_trained(self) -> int:
        """Number of residuals: one more than the largest id."""
        return int(self.ids.max(initial=-1)) + 1

    @classmethod
    def of(cls, dataset: Dataset, renderer: Renderer, train: Histories) -> "Catalogue":
        """Return the catalogue of ``dataset``; residual ids go to the items of ``train`` alone."""
        records: list[Record] = list(dataset.item_records())
        met = np.zeros(len(records), dtype=bool)
        met[np.unique(train.items[train.items >= 0])] = True
        return cls(
            keys=list(dataset.items["key"][:]),
            records=records,
            texts=[renderer.item(record) for record in records],
            ids=np.where(met, np.cumsum(met) - 1, -1),
            offered=np.ones(len(records), dtype=bool),
        )

    def find(self, known: str) -> int | None:
        """Return the position of an item by its key or, failing that, its title (case and spacing aside)."""
        place = self._places.get(known)
        return self._titles.get(_fold(known)) if place is None else place

    def record(self, place: int) -> dict[str, Any]:
        """Return an item's fields, its key among them."""
        return {**self.records[place], "key": self.keys[place]}

    def add(
        self, keys: Sequence[str], records: Sequence[Record], texts: Sequence[str], vectors: Tensor | None = None
    ) -> None:
        """Append items; what was learnt or counted by position knows none of them.

        Args:
            keys: distinct.
            records: all fields of each.
            texts: the words of each.
            vectors: of the texts; ``None`` = the catalogue has none.

        Raises:
            DataError: a key is taken by an item that is still offered.
        """
        taken = [key for key in keys if self.offers(key)]
        if taken or len(set(keys)) < len(keys):
            raise DataError(
                f"got item ids that are taken: {', '.join(taken[:5]) or 'twice in one call'}; remove them first"
            )
        if self.vectors is not None and vectors is not None:
            self.vectors = torch.cat([self.vectors, vectors])
        self.ids = np.concatenate([self.ids, np.full(len(keys), -1)])
        self.offered = np.concatenate([self.offered, np.ones(len(keys), dtype=bool)])
        for key, record, text in zip(keys, records, texts, strict=True):
            self.records.append(record)
            self.texts.append(text)
            self.keys.append(key)
            # Last: whoever finds it from another thread also finds all that belongs to it.
            self._titles[_fold(record.get("title"))] = self._places[key] = len(self.keys) - 1

    def change(
        self, keys: Sequence[str], records: Sequence[Record], texts: Sequence[str], vectors: Tensor | None = None
    ) -> None:
        """Give items other words; what training has learnt of each stays with it.

        Args:
            keys: distinct.
            records: all fields of each.
            texts: the words of each.
            vectors: of the texts; ``None`` = the catalogue has none.

        Raises:
            DataError: a key that is not on offer; nothing is changed then.
        """
        places = self._on_offer(keys, "changed")
        if self.vectors is not None and vectors is not None:
            self.vectors = self.vectors.index_copy(0, torch.tensor(places), vectors)
        for place, record, text in zip(places, records, texts, strict=True):
            self.records[place], self.texts[place] = record, text
            self._titles[_fold(record.get("title"))] = place

    def remove(self, keys: Sequence[str]) -> list[int]:
        """Stop offering items; return their positions.

        Raises:
            DataError: a key that is not on offer; nothing is removed then.
        """
        places = self._on_offer(list(dict.fromkeys(keys)), "removed")
        offered = self.offered.copy()  # whoever reads in another thread goes on with the former
        offered[places] = False
        self.offered = offered
        return places

    def offers(self, key: str) -> bool:
        """Whether an item of this key is on offer."""
        return key in self._places and bool(self.offered[self._places[key]])

    def _on_offer(self, keys: Sequence[str], what: str) -> list[int]:
        unknown = [key for key in keys if not self.offers(key)]
        if unknown:
            raise DataError(f"got item ids that are not on offer: {', '.join(unknown[:5])}; nothing was {what}")
        return [self._places[key] for key in keys]

    def save(self, folder: Path) -> None:
        """Write ``items.parquet`` and ``vectors.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        records = [json.dumps(dict(record), ensure_ascii=False, default=str) for record in self.records]
        table = {"key": self.keys, "record": records, "text": self.texts, "id": self.ids, "offered": self.offered}
        pq.write_table(pa.table(table), folder / "items.parquet")
        if self.vectors is not None:
            save_file({"vectors": self.vectors.contiguous()}, folder / "vectors.safetensors")

    @classmethod
    def load(cls, folder: Path, encoded: bool = True) -> "Catalogue":
        """Read what ``save`` wrote.

        Args:
            encoded: whether there must be vectors; a task that reads items as words saves none.

        Raises:
            RunError: a file is missing or damaged.
        """
        try:
            with pq.ParquetFile(folder / "items.parquet") as file:
                table = file.read()
            vectors = load_file(folder / "vectors.safetensors")["vectors"] if encoded else None
        except (OSError, pa.ArrowInvalid, SafetensorError, KeyError) as error:
            raise RunError(f"{folder}: the run's catalogue is missing or damaged ({error}); train again") from error
        # Read as one file and through lists: a data set, or arrow's to_numpy, imports pandas, 0.3 CPU-s of a start.
        columns = {name: table[name].to_pylist() for name in table.column_names}
        return cls(
            keys=columns["key"],
            records=[json.loads(record) for record in columns["record"]],
            texts=columns["text"],
            ids=np.array(columns["id"], dtype=np.int64),
            offered=np.array(columns["offered"], dtype=bool),
            vectors=vectors,
        )


def _fold(title: object) -> str:
    return " ".join(str(title or "").casefold().split())
