"""A dataset folder, opened: tables through ``datasets`` (memory-mapped), histories as arrays, rows as records.

Parquet is what the folder keeps; ``datasets`` maps Arrow files. So the first use of a table unpacks it once into a
hidden folder beside it (or, where the folder is read-only, into the system's temporary folder), under the hash of its
content: a table that changes can never meet an old copy. This module knows no text template, model or source.
"""

import functools
import getpass
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from m6rec.data.attributes import unpack
from m6rec.data.histories import NO_TIME, SPLIT_CODES, Histories, Judgements, Split
from m6rec.data.manifest import FileEntry, Manifest, sha256
from m6rec.data.schema import REQUIRED_TABLES
from m6rec.errors import DataError

if TYPE_CHECKING:
    import datasets

CACHE_FOLDER = ".arrow"
RECORDS_KEPT = 1 << 16


class Dataset:
    """A dataset folder.

    Use :meth:`open`.

    Args:
        folder: the folder.
        manifest: its manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._item_record = functools.lru_cache(RECORDS_KEPT)(self._read_item_record)

    def __reduce__(self) -> tuple[type["Dataset"], tuple[Path, Manifest]]:
        return Dataset, (self.folder, self.manifest)

    @classmethod
    def open(cls, folder: str | Path) -> "Dataset":
        """Open a dataset folder; looks at names and sizes, see :meth:`verify` for contents.

        Raises:
            DataError: no dataset, one of another version, or a file that is missing or of another size.
        """
        path = Path(folder).expanduser()
        manifest = Manifest.read(path)
        absent = [name for name in REQUIRED_TABLES if manifest.file(f"{name}.parquet") is None]
        if absent:
            raise DataError(f"{path}: the manifest lists no {', '.join(absent)}.parquet; prepare the dataset again")
        for entry in manifest.files:
            _check(path / entry.name, entry)
        return cls(path, manifest)

    def verify(self) -> None:
        """Read every file again and compare its hash with the manifest's.

        Raises:
            DataError: names the first file whose content has changed.
        """
        for entry in self.manifest.files:
            if sha256(self.folder / entry.name) != entry.sha256:
                raise DataError(f"{self.folder / entry.name} is not the file the manifest describes; prepare it again")

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self.manifest.counts["items"]

    @property
    def num_users(self) -> int:
        """Number of users."""
        return self.manifest.counts["users"]

    @functools.cached_property
    def items(self) -> "datasets.Dataset":
        """Items; row ``i`` is item id ``i``."""
        return self._table("items")

    @functools.cached_property
    def users(self) -> "datasets.Dataset":
        """Users; row ``u`` is user id ``u``."""
        return self._table("users")

    @functools.cached_property
    def interactions(self) -> "datasets.Dataset":
        """Events, sorted by user and order."""
        return self._table("interactions")

    @functools.cached_property
    def reviews(self) -> "datasets.Dataset | None":
        """Reviews, sorted by user and time; ``None`` where there are none."""
        return self._table("reviews") if self._has("reviews") else None

    @functools.cached_property
    def impressions(self) -> "datasets.Dataset | None":
        """What was shown, sorted by user and time; ``None`` where it was not logged."""
        return self._table("impressions") if self._has("impressions") else None

    def histories(self) -> Histories:
        """Return all events as arrays; an event of unknown time counts as old as the oldest known one."""
        return self._histories

    @functools.cached_property
    def _histories(self) -> Histories:
        table = self._columns("interactions", ["user", "item", "time", "verb", "value", "split"])
        counts = np.bincount(table["user"].to_numpy(), minlength=self.num_users)
        verbs = table["verb"].combine_chunks().dictionary_encode()
        names = verbs.dictionary.to_pylist()
        # Sorted, so that a verb's number does not say which was seen first.
        rank = np.r_[np.argsort(np.argsort(names)), -1].astype(np.int16) if names else np.array([-1], np.int16)
        return Histories(
            offsets=np.r_[0, np.cumsum(counts)].astype(np.int64),
            items=table["item"].to_numpy(),
            splits=table["split"].to_numpy(),
            num_items=self.num_items,
            times=_times(table["time"]),
            values=_values(table["value"]),
            verbs=rank[verbs.indices.fill_null(-1).to_numpy(zero_copy_only=False)],
            verb_names=tuple(sorted(names)),
            rows=np.arange(len(table), dtype=np.int64),
        )

    def judgements(self, split: Split, threshold: float | None = None) -> Judgements:
        """Return labelled pairs of ``split``: from impressions where the dataset has them, else from values.

        A training pair may see the user's training events strictly before it (by order; for impressions by time). A
        held-out pair may see the earlier splits' events, never another held-out one.

        Args:
            split: train, valid or test.
            threshold: without impressions: a value from here on is a yes.

        Raises:
            DataError: neither impressions nor values, or values without a threshold.
        """
        if self._has("impressions"):
            return self._judged_impressions(split)
        return self._judged_values(split, threshold)

    def _judged_values(self, split: Split, threshold: float | None) -> Judgements:
        everything = self.histories()
        if everything.values is None:
            raise DataError(f"{self.folder} has neither impressions nor values (ratings), so no pair has a label")
        if threshold is None:
            raise DataError("got no threshold, expected the value from which an event is a yes, e.g. threshold=4")
        labels = np.where(np.isnan(everything.values), np.nan, everything.values >= threshold).astype(np.float32)
        return everything.judged(split, labels)

    def _judged_impressions(self, split: Split) -> Judgements:
        table = self._columns("impressions", ["user", "item", "time", "label", "split"])
        table = table.filter(pc.equal(table["split"], SPLIT_CODES[split]))
        users, history = table["user"].to_numpy(), self.histories().before(split)
        lengths = np.diff(history.offsets)[users]
        shown = table["time"].fill_null(NO_TIME).to_numpy()
        if history.times is not None:
            lengths = _earlier(history, users, shown)
        labels = table["label"].to_numpy().astype(np.float32)
        return Judgements(history, users, table["item"].to_numpy(), labels, lengths.astype(np.int64), times=shown)

    def item_record(self, item: int) -> dict[str, Any]:
        """Return what is known of an item: title, brand, category, price, description and attributes; no nulls.

        Raises:
            DataError: no item has this id.
        """
        if not 0 <= item < self.num_items:
            raise DataError(f"got item id {item}, expected 0 to {self.num_items - 1}")
        return dict(self._item_record(int(item)))

    def item_records(self) -> Sequence[dict[str, Any]]:
        """Return the records of all items, read as they are asked for."""
        return ItemRecords(self)

    def _read_item_record(self, item: int) -> dict[str, Any]:
        return _record(self.items[item], dropped=("key",))

    def user_record(self, user: int) -> dict[str, Any]:
        """Return what is known of a user: attributes, no nulls.

        Raises:
            DataError: no user has this id.
        """
        if not 0 <= user < self.num_users:
            raise DataError(f"got user id {user}, expected 0 to {self.num_users - 1}")
        return _record(self.users[int(user)], dropped=("key",))

    def event_record(self, row: int) -> dict[str, Any]:
        """Return one event: verb, time, query, value and attributes, no nulls, and ``item``: the item's record.

        Args:
            row: row of ``interactions.parquet`` (:attr:`Histories.rows`).

        Raises:
            DataError: there is no such row.
        """
        if not 0 <= row < self.manifest.counts["events"]:
            raise DataError(f"got event {row}, expected 0 to {self.manifest.counts['events'] - 1}")
        values = self.interactions[int(row)]
        item = values.pop("item")
        record = _record(values, dropped=("user", "split"))
        return record if item < 0 else {**record, "item": self.item_record(item)}

    def _has(self, table: str) -> bool:
        return self.manifest.file(f"{table}.parquet") is not None

    def _columns(self, table: str, columns: list[str]) -> pa.Table:
        path = self.folder / f"{table}.parquet"
        try:
            return pq.read_table(path, columns=columns, partitioning=None).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}; prepare the dataset again") from error

    def _table(self, name: str) -> "datasets.Dataset":
        import datasets  # takes seconds; whoever only needs arrays does not wait

        entry = self.manifest.file(f"{name}.parquet")
        assert entry is not None
        return datasets.Dataset.from_file(str(_unpacked(self.folder / entry.name, entry)))


class ItemRecords(Sequence[dict[str, Any]]):
    """The records of a dataset's items, read as they are asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return self._dataset.num_items

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        return self._dataset.item_record(number)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._dataset.items.iter(1024):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield _record(dict(zip(names, values, strict=True)), dropped=("key",))


def _record(values: dict[str, Any], dropped: tuple[str, ...]) -> dict[str, Any]:
    attributes = unpack(values.pop("attributes", None))
    known = {name: value for name, value in values.items() if value is not None and name not in dropped}
    return {**attributes, **known}


def _earlier(history: Histories, users: NDArray[np.int32], times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the leading events of each user's ``history`` that are strictly before a time."""
    assert history.times is not None
    if not history.num_events:
        return np.zeros(len(users), np.int64)
    first, span = history.times.min(), int(np.ptp(history.times)) + 2
    # One sorted line of all users' times. With a given split a user's times may go back: then the latest so far counts.
    line = np.maximum.accumulate(history.users.astype(np.int64) * span + (history.times - first))
    asked = users.astype(np.int64) * span + np.clip(times - first, 0, span - 1)
    return np.searchsorted(line, asked, side="left") - history.offsets[users]


def _times(column: pa.ChunkedArray) -> NDArray[np.int64] | None:
    if column.null_count == len(column):
        return None
    return column.fill_null(pc.min(column)).to_numpy()


def _values(column: pa.ChunkedArray) -> NDArray[np.float32] | None:
    if column.null_count == len(column):
        return None
    return column.fill_null(np.float32(np.nan)).to_numpy()


def _check(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing; prepare the dataset again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise DataError(f"{path} has {size} bytes, the manifest says {entry.bytes} (truncated?); prepare it again")


def _unpacked(path: Path, entry: FileEntry) -> Path:
    """Return the Arrow file of a parquet file, made on first use."""
    name = f"{path.stem}-{entry.sha256[:16]}.arrow"
    folders = (path.parent / CACHE_FOLDER, Path(tempfile.gettempdir()) / f"m6rec-{getpass.getuser()}")
    for folder in folders:
        if (folder / name).is_file() and _is_ours(folder):
            return folder / name
    refusals = []
    for folder in folders:
        try:
            folder.mkdir(exist_ok=True)
            if _is_ours(folder):
                return _unpack_parquet(path, folder / name)
        except (pa.ArrowException, OSError) as error:
            refusals.append(str(error))
    raise DataError(f"{path} cannot be unpacked to {' or '.join(map(str, folders))}: {'; '.join(refusals)}")


def _is_ours(folder: Path) -> bool:
    """Tell whether nobody else could have put a file there: the folder lies in the dataset, or is the user's own."""
    return folder.name == CACHE_FOLDER or folder.stat().st_uid == os.getuid()


def _unpack_parquet(path: Path, target: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        file = pq.ParquetFile(path)
        with os.fdopen(handle, "wb") as sink, pa.ipc.new_stream(sink, file.schema_arrow) as writer:
            for batch in file.iter_batches(1 << 16, use_threads=False):
                writer.write_batch(batch)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target
