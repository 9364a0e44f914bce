"""Dialogues: which item is recommended next, of the whole catalogue? ReDial, and OpenDialKG split anew by dialogue."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from m6rec.data.sources.base import Source


class Resplit:
    """A source of dialogues under the split of this bench, whole dialogues each.

    ReDial's training part is not at hand: its validation part trains, less one dialogue in eight, which validates; its
    test part stays what it is. Of a source without a split one dialogue in ten validates and one in ten tests.

    Args:
        source: the whole.
        keep_one_in: thins it to one dialogue in this many, for quick runs.
    """

    def __init__(self, source: Source, keep_one_in: int = 1) -> None:
        self._source, self._keep_one_in = source, keep_one_in
        self.config, self.Config = source.config, source.Config
        self.name, self.licence, self.domain = source.name, source.licence, source.domain

    def events(self) -> Iterator[pa.Table]:
        for table in self._source.events():
            rows = [self._moved(row, row["user"]) for row in table.to_pylist() if self._kept(row["user"])]
            if rows:
                yield pa.Table.from_pylist(rows)

    def conversations(self) -> Iterator[dict[str, Any]]:
        for dialogue in self._source.conversations():
            if self._kept(dialogue["id"]):
                yield self._moved(dialogue, dialogue["id"])

    def items(self) -> Iterator[pa.Table]:
        return self._source.items()

    def users(self) -> Iterator[pa.Table]:
        return iter(())

    def reviews(self) -> Iterator[pa.Table]:
        return iter(())

    def impressions(self) -> Iterator[pa.Table]:
        return iter(())

    def _kept(self, dialogue: str) -> bool:
        return zlib.crc32(f"kept {dialogue}".encode()) % self._keep_one_in == 0

    def _moved(self, row: Mapping[str, Any], dialogue: str) -> dict[str, Any]:
        number = zlib.crc32(dialogue.encode())
        match row.get("split"):
            case "valid":
                return {**row, "split": "train" if number % 8 else "valid"}
            case None:
                return {**row, "split": {0: "test", 1: "valid"}.get(number % 10, "train")}
        return dict(row)
