"""Mining: a trained retriever finds what it likes at every training position, and a judge looks at each.

It streams over windows into parts on disk. Knows no loss; what is kept of a list is another module's business.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.data.histories import Queries
from m6rec.indexes import INDEXES
from m6rec.indexes.base import Neighbours
from m6rec.indexes.shards import Shards
from m6rec.nn.gather import num_processes
from m6rec.tasks.retrieval.task import Retrieval
from m6rec.tasks.retrieval.windows import Window, window
from m6rec.training.judges import Exam, Judge
from m6rec.training.lists import ListFolder, Lists
from m6rec.training.moments import Moments, TakenItems

Floats = NDArray[np.float32]
WINDOWS_A_PART = 512
NUM_RANDOM = 5


class Searchable(Protocol):
    """What mining needs of an index."""

    def search(self, queries: Floats, k: int) -> Neighbours:
        """Return the ``k`` nearest ids of each query."""
        ...


class Retriever:
    """A trained retrieval task, as what finds items for a moment; it is read and never trained.

    Args:
        task: with its texts encoded.
        backbone: tuned.
        index: name on the indexes shelf.
        shards: pieces that the index is cut into, kept in ``folder``; 1 = one index in memory.
        folder: for shards.

    Attributes:
        items: ``[num_items, dim]`` vectors of length one.
        scale: what inner products are multiplied by, to be logits.
    """

    def __init__(
        self, task: Retrieval, backbone: Backbone, index: str = "exact", shards: int = 1, folder: Path | None = None
    ) -> None:
        self.task, self.backbone = task, backbone
        self.segments = task.segments()
        self.items: Floats = F.normalize(self.segments.towers[: len(task.catalogue)], dim=1).cpu().numpy()
        self.scale = float(torch.exp(-task.log_temperature.detach()))
        self.taken = TakenItems(task.material.train)
        self.index = self._index(index, shards, folder)

    def _index(self, name: str, shards: int, folder: Path | None) -> Searchable:
        places, dim = np.flatnonzero(self.task.catalogue.offered), self.items.shape[1]
        if shards > 1 and folder is not None:
            parts = ((part, self.items[part]) for part in np.array_split(places, shards))
            if _rank() == 0:
                Shards.write(folder, parts, dim, name)
            _wait()
            return Shards(folder, dim, name)
        index: Any = INDEXES.load(name)(dim=dim)
        index.add(places, self.items[places])
        return index

    @property
    def fingerprint(self) -> str:
        """Hash of what it finds things with."""
        digest = hashlib.sha256(self.items.tobytes())
        for name, tensor in sorted(self.task.history.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def read(self, windows: Sequence[Window]) -> tuple[Floats, NDArray[np.int64]]:
        """Return the state before every target of some windows, in one pass, and the targets' event numbers."""
        task = self.task.eval()
        batch: Any = task.collate(list(windows)).to(self.segments.towers.device)
        columns = torch.arange(len(self.segments.towers), device=self.segments.towers.device)
        states, _, _ = task.positions(self.backbone, batch, self.segments.towers, columns)
        return F.normalize(states.float(), dim=1).cpu().numpy(), target_events(windows, task.material.table.num_items)

    @torch.no_grad()
    def at(self, moments: Moments, segments: NDArray[np.int64] | None = None) -> Floats:
        """Return the state at each moment.

        Args:
            segments: of each event of the moments' history; default: the events' items are their segments.
        """
        task, given = self.task, moments.history.items.astype(np.int64) if segments is None else segments
        spans = [moments.span(row, task.config.max_events) for row in range(len(moments))]
        windows = [
            window(moments.history, given, int(user), start, stop)
            for user, (start, stop) in zip(moments.users, spans, strict=True)
        ]
        record = self._records(moments)
        parts = [
            task.states(self.backbone, windows[start : start + 256], self.segments, record).cpu()
            for start in range(0, len(windows), 256)
        ]
        return (torch.cat(parts) if parts else torch.zeros(0, task.config.dim)).numpy()

    def _records(self, moments: Moments) -> Any:
        return lambda event: self.task.material.record_of(moments.history, event)

    def find(self, states: Floats, users: NDArray[np.int64], depth: int, without: Tensor | None = None) -> Neighbours:
        """Return the ``depth`` items nearest to each state that its user has not taken; logits, best first.

        Where nearly everything that is near has been taken, there are fewer, perhaps none.

        Args:
            without: ``[n]`` one further item that each must not find.
        """
        found = self.index.search(states, 2 * depth)
        gone = self.taken.contain(users, found.ids) | (found.ids < 0)
        if without is not None:
            gone |= found.ids == without[:, None].numpy()
        order = np.argsort(gone, axis=1, kind="stable")[:, :depth]
        none = np.take_along_axis(gone, order, axis=1)
        ids, scores = (np.take_along_axis(column, order, axis=1) for column in (found.ids, found.scores))
        logits = np.where(none, 0.0, np.multiply(scores, self.scale)).astype(np.float32)
        return Neighbours(np.where(none, -1, ids), logits)

    def logits(self, states: Floats, items: NDArray[np.integer]) -> Floats:
        """Return ``[n, k]`` the logits of ``items`` (``[n, k]``, -1 = none) for each state."""
        found = np.einsum("nd,nkd->nk", states, self.items[np.maximum(items, 0)])
        return np.asarray(found * self.scale, dtype=np.float32)


def _rank() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


def _wait() -> None:
    """Wait until every process is here."""
    if num_processes() > 1:
        dist.barrier()


def target_events(windows: Sequence[Window], num_items: int) -> NDArray[np.int64]:
    """Return the event number of every target of some windows, in the order in which a task reads them; -1 = pseudo."""
    found = []
    for item in windows:
        places = np.arange(len(item))
        found.append(item.events[(places >= max(1, item.first_target)) & (item.segments < num_items)])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def look(
    retriever: Retriever, judge: Judge, moments: Moments, states: Floats, targets: NDArray[Any], depth: int
) -> Lists:
    """Return a list a moment: its target (-1 = none), then the ``depth`` items that the retriever finds."""
    targets = targets.astype(np.int32)
    found = retriever.find(states, moments.users, depth, torch.from_numpy(targets))
    ids = np.concatenate([targets[:, None], found.ids.astype(np.int32)], axis=1)
    retrieved = np.concatenate([retriever.logits(states, targets[:, None]), found.scores], axis=1)
    numbers = judge.numbers(moments, ids, retrieved)
    return Lists(np.full(len(moments), -1, np.int64), ids, numbers, states.astype(np.float16))


@dataclass(frozen=True)
class Miner:
    """Lists for every training position.

    Args:
        retriever: finds.
        judge: looks.
        depth: items a list.
        name: what tells these lists from others; default: the retriever's fingerprint. One that is being trained has
            another fingerprint after a resumption, and still the same lists.
    """

    retriever: Retriever
    judge: Judge
    depth: int
    name: str | None = None

    def mine(self, folder: Path) -> Lists:
        """Mine what ``folder`` does not hold yet, every process its share, and return all lists.

        Raises:
            RunError: the folder holds another retriever's lists.
        """
        lists = self.lists(folder)
        lists.fill(self.part, _rank(), num_processes())
        _wait()
        return lists.read()

    def lists(self, folder: Path) -> ListFolder:
        """Return ``folder`` as one for these lists.

        Raises:
            RunError: it holds another retriever's.
        """
        num_windows = len(self.retriever.task.examples())
        key: Mapping[str, Any] = {
            "retriever": self.name or self.retriever.fingerprint,
            "judge": [type(self.judge).__name__, *self.judge.start],
            "depth": self.depth,
            "windows": num_windows,
        }
        return ListFolder(folder, key, -(-num_windows // WINDOWS_A_PART))

    def part(self, number: int) -> Lists:
        """Return the lists of one part: of ``WINDOWS_A_PART`` windows."""
        windows = self.retriever.task.examples()
        span = range(number * WINDOWS_A_PART, min(len(windows), (number + 1) * WINDOWS_A_PART))
        states, events = self.retriever.read([windows[place] for place in span])
        train = self.retriever.task.material.train
        moments = Moments.before(train, events)
        made = look(self.retriever, self.judge, moments, states, train.items[events], self.depth)
        return Lists(events, made.ids, made.numbers, made.states)


def validation_lists(
    retriever: Retriever, judge: Judge, queries: Queries, depth: int, at_most: int = 4000, seed: int = 0
) -> tuple[Lists, Exam]:
    """Return lists at a seeded sample of validation queries (the first target of each), and the ranker's exam on them.

    Args:
        retriever: finds.
        judge: looks.
        queries: validation's.
        depth: items a list.
        at_most: queries.
        seed: of the sample, and of the random items.
    """
    rng = np.random.default_rng(seed)
    asked = queries.take(np.sort(rng.permutation(len(queries))[:at_most]))
    history, segments = retriever.task.material.table.readable(asked.history)
    moments = Moments.after(history, asked.users)
    targets, states = asked.targets[asked.target_offsets[:-1]], retriever.at(moments, segments)
    lists = look(retriever, judge, moments, states, targets, depth)
    chance = rng.integers(len(retriever.items), size=(len(moments), NUM_RANDOM)).astype(np.int32)
    random = judge.numbers(moments, chance, retriever.logits(states, chance))
    return lists, Exam(lists.ids, retriever.logits(states, lists.ids), lists.numbers, random)
