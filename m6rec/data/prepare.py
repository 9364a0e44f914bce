"""From a source to a dataset folder, in bounded memory.

Two passes: :mod:`m6rec.data.gather` streams the source into buckets on disk, :mod:`m6rec.data.settle` takes the buckets
one by one. In memory stay the distinct keys, a few numbers for each user and item, and, for a temporal split, eight
bytes for each event. This module knows no file format and no model.

What becomes of an odd log:

- A user's events are ordered by time; those of the same second by the tie rule; those without a time come first, as in
  the file. The order of the file itself matters only there.
- A value that is NaN is absent; a negative one stays. Repeated events stay unless ``deduplicate`` is asked for.
- A user with one or two events trains only (leave-one-out, ratio). One user or one item is a log like any other.
- An item or user that only the events name is kept, without a record; one that only the catalogue names is kept too.
- A column without a meaning of ours is kept as an attribute. An empty log is an error.
"""

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from m6rec.config import plain
from m6rec.data import filters, schema, settle
from m6rec.data.folder import fresh_folder
from m6rec.data.gather import Gathered, Watch, gather
from m6rec.data.histories import SPLIT_CODES
from m6rec.data.manifest import FileEntry, Filter, Manifest, SplitRule, sha256
from m6rec.data.sources.base import Source
from m6rec.data.split import Rule, time_cutoffs
from m6rec.errors import ConfigError, DataError

VERSIONED = ("m6rec", "numpy", "pyarrow")


@dataclass(frozen=True)
class PrepareConfig:
    """How a source becomes a dataset. Every field changes results."""

    name: str | None = None
    """Name of the dataset in reports; the source's name where not given."""
    split: Rule = "leave-one-out"
    """What is held out: leave-one-out (each user's last event for test, the one before for validation; users with three
    events of items or more), temporal (what comes after a moment, for all users at once), ratio (the last share of each
    user's events), given (the source's own split)."""
    split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of train, valid and test for temporal and ratio, and for conversations without a split."""
    ties: settle.Ties = "random"
    """Order of a user's events of the same second: random (seeded) or file. Where a log has many such ties this moves
    every figure, so it is printed with all of them."""
    seed: int = 0
    """Seed of the id shuffle, of random ties and of the split of conversations."""
    k_core: int = 0
    """Keep only users and items with this many events of items, applied until all have; 0 = off."""
    deduplicate: filters.Deduplicate = "none"
    """Keep the earliest of repeated events: none (off), exact (same user, item, time, verb and query), item (same user
    and item)."""
    min_value: float | None = None
    """Drop events whose value (rating) is below this; events without a value stay."""
    session_gap_s: int | None = None
    """Number each user's sessions in a column ``session``: a silence longer than this many seconds ends one."""

    def __post_init__(self) -> None:
        shares = self.split_shares
        if len(shares) != 3 or any(share < 0 for share in shares) or abs(sum(shares) - 1) > 1e-6 or shares[0] <= 0:
            raise ConfigError(
                f"split_shares: got {shares}, expected three shares of train, valid and test that sum to 1"
            )
        if self.k_core < 0:
            raise ConfigError(f"k_core: got {self.k_core}, expected 0 (off) or more")
        if self.session_gap_s is not None and self.session_gap_s <= 0:
            raise ConfigError(f"session_gap_s: got {self.session_gap_s}, expected a number of seconds above 0")


def prepare(source: Source, out: str | Path, config: PrepareConfig | None = None) -> Manifest:
    """Write the dataset folder ``out`` from ``source``; an older dataset there is replaced in the last step.

    Args:
        source: raw tables.
        out: the folder; it appears whole or not at all.
        config: split, order and filters.

    Raises:
        DataError: a wrong row or column, an empty log, a filter that leaves nothing, a folder that is no dataset of
            ours, a full disk. Whatever was at ``out`` is untouched then.
    """
    config = config or PrepareConfig()
    with fresh_folder(Path(out).expanduser().absolute()) as (folder, scratch), _progress() as watch:
        gathered = gather(source, scratch, config.seed, watch)
        users, items, done = _filter(gathered, config)
        ids = settle.Ids.of(gathered, users, items)
        plan = _plan(gathered, ids, config)
        files, counts = _write(folder, gathered, source, ids, plan)
        manifest = _manifest(source, config, plan, files, counts, done)
        manifest.write(folder)
    return manifest


@contextlib.contextmanager
def _progress() -> Iterator[Watch]:
    """Show what is read and how many rows, on a terminal only."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:

        def watch(tables: Iterable[pa.Table], what: str) -> Iterator[pa.Table]:
            task = bar.add_task(f"reading {what}", total=None)
            for table in tables:
                yield table
                bar.advance(task, len(table))

        yield watch


def _filter(gathered: Gathered, config: PrepareConfig) -> tuple[NDArray[np.bool_], NDArray[np.bool_], list[Filter]]:
    """Run the filters that were asked for, in a fixed order; return the kept users, the kept items, and the log."""
    events, sizes = gathered.events, (len(gathered.users), len(gathered.items))
    done = []
    if (low := config.min_value) is not None:
        done.append(filters.report("min_value", low, lambda: filters.drop_low_values(events, low), events, *sizes))
    if (how := config.deduplicate) != "none":
        done.append(filters.report("deduplicate", how, lambda: filters.drop_repeats(events, how), events, *sizes))
    if not config.k_core:
        return *_seen(gathered), done
    users, items = filters.k_core(events, *sizes, config.k_core)
    removed = events.num_rows - filters.count_kept(events, users, items)
    done.append(Filter("k_core", str(config.k_core), removed, int(users.sum()), int(items.sum())))
    if not users.any():
        raise DataError(f"k_core={config.k_core} leaves no event of {events.num_rows}; ask for a smaller core")
    return users, items, done


def _seen(gathered: Gathered) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the users and items that have a record or are in some row that is left."""
    users, items = gathered.user_records.listed.copy(), np.r_[gathered.item_records.listed, False]
    for rows in (gathered.events, gathered.impressions, gathered.reviews):
        for table in rows.tables(["user", "item"]):
            users[table["user"].to_numpy()] = True
            items[table["item"].to_numpy()] = True
    return users, items[:-1]


def _plan(gathered: Gathered, ids: settle.Ids, config: PrepareConfig) -> settle.Plan:
    cutoffs = None
    if config.split == "given" and not gathered.has_splits:
        raise DataError(
            "split=given needs a split of the source's own, and its events have none; for a table name the column of "
            "train, valid and test with --split-column"
        )
    if config.session_gap_s is not None and not gathered.has_times:
        raise DataError(
            "session_gap_s needs times, and no event of the log has one; map the column of times, or leave it"
        )
    if config.split == "temporal":
        tables = (ids.renumber(table)[0]["time"] for table in gathered.events.tables())
        known = [table.drop_null().to_numpy() for table in tables]
        cutoffs = time_cutoffs(np.concatenate(known or [np.zeros(0, np.int64)]), config.split_shares)
    return settle.Plan(config.split, config.split_shares, cutoffs, config.ties, config.seed, config.session_gap_s)


def _write(
    folder: Path, gathered: Gathered, source: Source, ids: settle.Ids, plan: settle.Plan
) -> tuple[list[FileEntry], dict[str, int]]:
    """Write every file but the manifest; return their entries and the counts."""
    items = settle.write_records(folder / "items.parquet", schema.ITEMS, gathered.item_records, ids.items)
    users = settle.write_records(folder / "users.parquet", schema.USERS, gathered.user_records, ids.users)
    settled = settle.write_events(folder / "interactions.parquet", gathered, ids, plan)
    events, by_user = settled.file, settled.by_user
    counts = {"users": users.num_rows, "items": items.num_rows, "events": events.num_rows}
    counts |= {f"{name}_events": int(by_user[code].sum()) for name, code in SPLIT_CODES.items()}
    counts["events_without_item"] = events.num_rows - int(by_user.sum())
    counts |= {f"{name}_users": int((by_user[SPLIT_CODES[name]] > 0).sum()) for name in ("valid", "test")}
    counts["tied_events"] = settled.num_tied
    counts["repeated_item_records"] = gathered.item_records.num_repeated
    files = [items.entry(), users.entry(), events.entry()]
    for name, rows in (("impressions", gathered.impressions), ("reviews", gathered.reviews)):
        if rows.num_rows:
            path, shape = folder / f"{name}.parquet", schema.TABLES[name]
            about = settle.write_about_users(path, shape, rows, ids, settled.held_out, plan.rule == "given")
            counts[name] = about.num_rows
            files.append(about.entry())
    talks = settle.settle_conversations(source.conversations(), gathered.items, ids.items, plan)
    path = folder / schema.CONVERSATIONS_FILE
    counts["conversations"] = sum(settle.write_lines(path, talks))
    if counts["conversations"]:
        files.append(FileEntry(path.name, counts["conversations"], path.stat().st_size, sha256(path), {}))
    else:
        path.unlink()
    if not events.num_rows and not counts["conversations"]:
        raise DataError("no event is left of the log; expected at least one row with a user and an item")
    return files, counts


def _manifest(
    source: Source,
    config: PrepareConfig,
    plan: settle.Plan,
    files: list[FileEntry],
    counts: dict[str, int],
    done: list[Filter],
) -> Manifest:
    return Manifest(
        name=config.name or source.name,
        domain=source.domain,
        source=source.name,
        licence=source.licence,
        seed=config.seed,
        ties=config.ties,
        split=SplitRule(config.split, tuple(config.split_shares), plan.cutoffs or ()),
        counts=counts,
        files=tuple(files),
        filters=tuple(done),
        session_gap_s=config.session_gap_s,
        source_config=plain(source.config),
        versions={name: _version(name) for name in VERSIONED},
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
