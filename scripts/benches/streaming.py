"""Users arriving in time order on the sample world: what each is shown, and whether she clicks.

Everything before the middle of the log is known when the offline stage learns. The rest arrives window by window; each
window is predicted first and learnt from then. Arms: no adaptation; two-stage online (the fixed part stays, a few
numbers a user follow her events, the prior of newcomers is refreshed); and full fine-tuning of everything, users'
numbers included. Needs no --data.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from benches.harness import Bench, PartOf, console
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from m6rec.coldstart.episodes import Episodes
from m6rec.coldstart.events import Events
from m6rec.coldstart.meta import TwoStage
from m6rec.coldstart.online import Online, UserParts
from m6rec.coldstart.rows import UserRow, UserRows
from m6rec.coldstart.users import ColdUsers
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.base import Source
from m6rec.data.sources.world import World, WorldConfig
from m6rec.data.store import Dataset
from m6rec.late_interaction.cache import CacheConfig
from m6rec.metrics.ranking import auc, uauc
from m6rec.nn.digest import digest_of

WINDOWS, HELD_OUT = 8, 3
WORDS = ("task.protocol.support=5", "task.protocol.min_queries=5")


class Before(PartOf):
    """A source as it was before some second."""

    def __init__(self, source: Source, second: int) -> None:
        super().__init__(source)
        self._second = second

    def _until(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            yield table.filter(pc.less(table["time"], self._second))

    def events(self) -> Iterator[pa.Table]:
        return self._until(self._source.events())

    def impressions(self) -> Iterator[pa.Table]:
        return self._until(self._source.impressions())


def run(bench: Bench) -> None:
    found = bench.each_seed(one_seed)
    bench.details["seeds"] = found
    bench.protocol = {"windows": WINDOWS, "held_out": HELD_OUT, "events": found[0]["events"]}
    show(found)
    if bench.json:
        draw(found, bench.json.with_name(f"{bench.json.stem}-time.png"))


def one_seed(bench: Bench, seed: int) -> dict[str, Any]:
    """Return every arm's figures over time."""
    users = 300 if bench.quick else 3000
    world = World(WorldConfig(users=users, items=600 if bench.quick else 2400, seed=seed))
    whole = prepared(bench, world, f"streaming-whole-{seed}", seed)
    judged = Episodes.of(whole, threshold=None)
    assert judged.times is not None
    middle = int(np.median(judged.times))
    early = prepared(bench, Before(world, middle), f"streaming-early-{seed}", seed)
    small = ["backbone.name=foundation"] if bench.quick else []
    task = bench.train("cold-users", early, "streaming", seed, [*WORDS, *small]).task
    assert isinstance(task, ColdUsers)
    stream = Stream.of(task, whole, judged, middle, seed)
    arms = {
        "none": Unadapted(task),
        "two_stage": TwoStageOnline(task, stream, bench.work / f"streaming-{seed}.db"),
        "full": FullFineTuning(task, stream),
    }
    curves = {name: follow(arm, stream) for name, arm in arms.items()}
    return {"figures": figures(curves, arms), "curves": curves, "events": len(judged.items), "users": len(judged)}


def prepared(bench: Bench, source: Source, name: str, seed: int) -> Dataset:
    prepare(source, bench.work / name, PrepareConfig(seed=seed))
    return Dataset.open(bench.work / name)


@dataclass(frozen=True)
class Stream:
    """What happens, as numbers of events.

    Args:
        task: trained on what was before.
        judged: everything, users in rows.
        places: ``[events]`` each item's place in the task's catalogue.
        profiles: ``[users, columns]``.
        before: events known to the offline stage, without ``held``.
        windows: events of each window, in time order.
        held: some early users' last events before the stream, which nobody learns a user from.
    """

    task: ColdUsers
    judged: Episodes
    places: NDArray[np.int64]
    profiles: Tensor
    before: NDArray[np.int64]
    windows: list[NDArray[np.int64]]
    held: NDArray[np.int64]

    @classmethod
    def of(cls, task: ColdUsers, whole: Dataset, judged: Episodes, middle: int, seed: int) -> "Stream":
        keys = whole.items["key"][:]
        found = np.array([task.catalogue.find(key) for key in keys])
        assert judged.times is not None
        early = np.flatnonzero(judged.times < middle)
        counts = np.bincount(judged.rows[early], minlength=len(judged))
        tested = np.random.default_rng(seed).random(len(judged)) < 0.3
        tested &= counts >= 4 * HELD_OUT
        # Events of a user stand in their order.
        from_end = (np.cumsum(counts)[judged.rows[early]] - 1) - np.arange(len(early))
        held = tested[judged.rows[early]] & (from_end < HELD_OUT)
        later = np.flatnonzero(judged.times >= middle)
        later = later[np.argsort(judged.times[later], kind="stable")]
        windows = [np.sort(part) for part in np.array_split(later, WINDOWS)]
        profiles = task.known.users([whole.user_record(int(user)) for user in judged.users])
        places = found[judged.items].astype(np.int64)
        return cls(task, judged, places, profiles, early[~held], windows, early[held])

    def events(self, which: NDArray[np.int64]) -> tuple[NDArray[np.int64], Events]:
        """Return the rows of the users of some events, and the events padded, one row a user."""
        who, starts, counts = np.unique(self.judged.rows[which], return_index=True, return_counts=True)
        width, known = int(counts.max()), self.task.known
        numbers = starts[:, None] + np.minimum(np.arange(width), counts[:, None] - 1)
        keep = torch.from_numpy(np.arange(width) < counts[:, None])
        places = torch.from_numpy(self.places[which[numbers]])
        mean, scale = known.units.tolist()
        values = torch.from_numpy((self.judged.values[which[numbers]] - mean) / scale).float()
        columns = {"base": known.base[places], "counts": known.counts[places], "taste": known.taste[places]}
        return who, Events(places=places, **columns, values=values, keep=keep)

    def names(self, rows: NDArray[np.int64]) -> list[str]:
        """Return users as the store knows them."""
        return [str(user) for user in self.judged.users[rows].tolist()]


class Unadapted:
    """The offline stage alone: everybody is at the prior."""

    cpu_ms, bytes_per_user = 0.0, 0

    def __init__(self, task: ColdUsers) -> None:
        assert isinstance(task.predictor, TwoStage)
        self.online = Online(copy.deepcopy(task.predictor), task.known.table)

    def predict(self, stream: Stream, rows: NDArray[np.int64], asked: Events) -> Tensor:
        return self.online.predict(self.online.newcomers(stream.profiles[rows]), asked)

    def learn(self, stream: Stream, rows: NDArray[np.int64], arrived: Events) -> None:
        pass

    def end_of_window(self) -> None:
        pass


class TwoStageOnline(Unadapted):
    """Users' numbers follow their events, in a store of compact rows on disk."""

    def __init__(self, task: ColdUsers, stream: Stream, path: Path) -> None:
        super().__init__(task)
        path.unlink(missing_ok=True)
        model = self.online.model
        config = CacheConfig(dtype="float16", disk=str(path))
        self.store = UserRows(digest_of(model.named_parameters())[:16], model.user_numbers, config)
        self.bytes_per_user = self.store.bytes_per_user
        self.updates, self.seconds = 0, 0.0
        self.learn(stream, *stream.events(stream.before))
        self.updates, self.seconds = 0, 0.0

    @property
    def cpu_ms(self) -> float:  # type: ignore[override]
        return 1e3 * self.seconds / max(1, self.updates)

    def parts(self, stream: Stream, rows: NDArray[np.int64]) -> UserParts:
        parts = self.online.newcomers(stream.profiles[rows])
        for place, row in enumerate(self.store.get(stream.names(rows))):
            if row is not None:
                parts.numbers[place] = torch.from_numpy(row.numbers)
                parts.events[place] = row.events
        return parts

    def predict(self, stream: Stream, rows: NDArray[np.int64], asked: Events) -> Tensor:
        return self.online.predict(self.parts(stream, rows), asked)

    def learn(self, stream: Stream, rows: NDArray[np.int64], arrived: Events) -> None:
        started = time.process_time()
        parts = self.online.observe(self.parts(stream, rows), arrived)
        numbers, counts = parts.numbers.numpy(), parts.events.tolist()
        names = stream.names(rows)
        self.store.put({name: UserRow(numbers[row], int(counts[row])) for row, name in enumerate(names)})
        self.seconds += time.process_time() - started
        self.updates += int(arrived.keep.sum())
        self.last = parts

    def end_of_window(self) -> None:
        self.online.refresh(self.last)


class FullFineTuning(TwoStageOnline):
    """Everything follows the stream: the fixed part, and every user's numbers, by Adam on what arrives."""

    def __init__(self, task: ColdUsers, stream: Stream, lr: float = 1e-3, passes: int = 3) -> None:
        Unadapted.__init__(self, task)
        model = self.online.model
        self.numbers = torch.nn.Parameter(self.online.newcomers(stream.profiles).numbers)
        rows, known = stream.events(stream.before)
        self.numbers.data[rows] = self.online.observe(self.online.newcomers(stream.profiles[rows]), known).numbers
        self.optimizer = torch.optim.Adam([*model.parameters(), self.numbers], lr=lr)
        self.passes, self.updates, self.seconds = passes, 0, 0.0
        self.bytes_per_user = 4 * model.user_numbers

    def predict(self, stream: Stream, rows: NDArray[np.int64], asked: Events) -> Tensor:
        with torch.no_grad():
            return self.online.model.predict(self.online.table, asked, self.numbers[rows])

    def learn(self, stream: Stream, rows: NDArray[np.int64], arrived: Events) -> None:
        started = time.process_time()
        places = torch.from_numpy(rows)
        for epoch in range(self.passes):
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch))
            for some in order.split(64):
                batch = Events(**{name: value[some] for name, value in vars(arrived).items()})
                found = self.online.model.predict(self.online.table, batch, self.numbers[places[some]])
                self.optimizer.zero_grad()
                (found - batch.values)[batch.keep].square().mean().backward()
                self.optimizer.step()
        self.seconds += time.process_time() - started
        self.updates += int(arrived.keep.sum())

    def end_of_window(self) -> None:
        pass


def follow(arm: Unadapted, stream: Stream) -> dict[str, Any]:
    """Return figures of each window, predicted before it is learnt from, and of early users at both ends."""
    found: dict[str, Any] = {"auc": [], "within_user_auc": [], "newcomers_auc": []}
    seen = np.unique(stream.judged.rows[stream.before])
    early = judge(arm, stream, stream.held)
    for window in stream.windows:
        rows, events = stream.events(window)
        scores = arm.predict(stream, rows, events)[events.keep].numpy()
        labels, users = stream.judged.labels[window], stream.judged.rows[window]
        new = ~np.isin(users, seen)
        found["auc"].append(auc(labels, scores))
        found["within_user_auc"].append(uauc(users, labels, scores))
        found["newcomers_auc"].append(auc(labels[new], scores[new]))
        arm.learn(stream, rows, events)
        arm.end_of_window()
    late = judge(arm, stream, stream.held)
    return {**found, "early_then": early, "early_now": late}


def judge(arm: Unadapted, stream: Stream, which: NDArray[np.int64]) -> float:
    rows, events = stream.events(which)
    return auc(stream.judged.labels[which], arm.predict(stream, rows, events)[events.keep].numpy())


def figures(curves: dict[str, dict[str, Any]], arms: dict[str, Unadapted]) -> dict[str, float]:
    """Return each arm's mean over time, its last quarter, what it forgot, and what it costs."""
    found = {}
    for name, curve in curves.items():
        for metric in ("auc", "within_user_auc", "newcomers_auc"):
            found[f"{name}_{metric}"] = float(np.nanmean(curve[metric]))
            found[f"{name}_{metric}_at_end"] = float(np.nanmean(curve[metric][-3:]))
        found[f"{name}_forgotten_auc"] = curve["early_then"] - curve["early_now"]
        found[f"{name}_cpu_ms_an_update"] = arms[name].cpu_ms
        found[f"{name}_bytes_a_user"] = float(arms[name].bytes_per_user)
    for rival in ("none", "full"):
        for metric in ("auc", "within_user_auc"):
            found[f"two_stage_minus_{rival}_{metric}"] = found[f"two_stage_{metric}"] - found[f"{rival}_{metric}"]
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print the curves over time."""
    for metric in ("auc", "within_user_auc", "newcomers_auc"):
        table = Table(metric, *(f"{window}" for window in range(WINDOWS)), box=None)
        for arm in found[0]["curves"]:
            means = np.nanmean([each["curves"][arm][metric] for each in found], axis=0)
            table.add_row(arm, *(f"{value:.3f}" for value in means))
        console.print(table)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw AUC over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=160)
    panels = figure.subplots(1, 2)
    for panel, metric in zip(panels, ("auc", "within_user_auc"), strict=True):
        for arm in found[0]["curves"]:
            means = np.nanmean([each["curves"][arm][metric] for each in found], axis=0)
            panel.plot(range(1, WINDOWS + 1), means, marker="o", label=arm.replace("_", " "))
        panel.set(xlabel="window of the stream", ylabel=metric.replace("_", " "))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
