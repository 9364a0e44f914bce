"""The manifest of a dataset folder: what it holds, how it was made, and the hash of every file.

This module reads and writes ``dataset.yaml``; it opens no table.
"""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from m6rec.config import parse, plain
from m6rec.data.schema import FORMAT, MANIFEST_FILE, VERSION
from m6rec.errors import ConfigError, DataError


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder."""

    name: str
    """File name."""
    rows: int
    """Rows or lines."""
    bytes: int
    """Size."""
    sha256: str
    """Hash of the content, hexadecimal."""
    schema: dict[str, str]
    """Column -> Arrow type; empty for a file that is no table."""


@dataclass(frozen=True)
class SplitRule:
    """How events were held out."""

    rule: str
    """leave-one-out, temporal, ratio or given."""
    shares: tuple[float, ...] = ()
    """Asked shares of train, valid and test (temporal, ratio, and conversations)."""
    cutoffs: tuple[int, ...] = ()
    """Temporal: Unix seconds from which events are valid, and test."""


@dataclass(frozen=True)
class Filter:
    """One opt-in filter and what it removed."""

    name: str
    """k_core, deduplicate or min_value."""
    setting: str
    """Its value."""
    events_removed: int
    """Events that it took away."""
    users_left: int
    """Users with an event after it."""
    items_left: int
    """Items with an event after it."""


@dataclass(frozen=True)
class Manifest:
    """What ``dataset.yaml`` holds."""

    name: str
    """Name of the dataset, for reports."""
    domain: str
    """Data template that fits it."""
    source: str
    """Name of the source that it was made from."""
    licence: str
    """Licence or terms of the data, in words."""
    seed: int
    """Seed of the id shuffle and of random ties."""
    ties: str
    """Order of a user's events of the same second: random (seeded) or file."""
    split: SplitRule
    """How events were held out."""
    counts: dict[str, int]
    """users, items, events, events by split, users with held-out events, rows dropped, and so on."""
    files: tuple[FileEntry, ...]
    """Every file of the folder."""
    filters: tuple[Filter, ...] = ()
    """Opt-in filters in the order in which they ran."""
    session_gap_s: int | None = None
    """Silence that ends a session, in seconds; none where sessions were not asked for."""
    source_config: dict[str, Any] = field(default_factory=dict)
    """Settings of the source."""
    versions: dict[str, str] = field(default_factory=dict)
    """Packages that made the folder."""
    format: str = FORMAT
    """Marks the file as ours."""
    version: int = VERSION
    """Version of the layout of the folder."""

    @property
    def hash(self) -> str:
        """One hash for the content of all files: names a dataset in results and caches."""
        text = "\n".join(f"{entry.name} {entry.sha256}" for entry in sorted(self.files, key=lambda entry: entry.name))
        return hashlib.sha256(text.encode()).hexdigest()

    def card(self) -> dict[str, Any]:
        """Return what names a dataset in every result: name, hash, counts, split and tie rule."""
        return {
            "name": self.name,
            "domain": self.domain,
            "hash": self.hash,
            "counts": plain(self.counts),
            "split": plain(self.split),
            "ties": self.ties,
        }

    def file(self, name: str) -> FileEntry | None:
        """Return the entry of the file ``name``, ``None`` where the folder has no such file."""
        return next((entry for entry in self.files if entry.name == name), None)

    def write(self, folder: Path) -> None:
        """Write ``dataset.yaml``."""
        text = yaml.safe_dump(_ordered(self), sort_keys=False, allow_unicode=True, width=120)
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of ``folder``.

        Raises:
            DataError: no folder, no manifest, a broken one, or one of another version.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            there = "there is no such folder" if not folder.is_dir() else f"it has no {MANIFEST_FILE}"
            raise DataError(
                f"{folder} is not a dataset folder: {there}; make one with: m6rec data prepare SOURCE --out DIR"
            )
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is damaged: {error}; prepare the dataset again") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise DataError(f"{path} is no manifest of ours (format: {FORMAT}); prepare the dataset again")
        if values.get("version") != VERSION:
            got = values.get("version")
            raise DataError(f"{path} has version {got}, this m6rec reads {VERSION}; prepare the dataset again")
        try:
            return parse(cls, values)
        except ConfigError as error:
            raise DataError(f"{path} is damaged: {error}; prepare the dataset again") from error


def _ordered(manifest: Manifest) -> dict[str, Any]:
    first = {"format": manifest.format, "version": manifest.version}
    return {
        **first,
        **{f.name: plain(getattr(manifest, f.name)) for f in dataclasses.fields(manifest) if f.name not in first},
    }


def sha256(path: Path) -> str:
    """Return the hash of a file's content, hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
