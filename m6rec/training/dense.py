"""A retrieval task, taught as dense passage retrieval is: large batches, hard negatives, a ranker as teacher.

Wraps the task: what is kept, evaluated and served is the one inside. Knows no run folder.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.errors import ConfigError
from m6rec.nn.chunks import in_chunks
from m6rec.nn.gather import gather_columns, gather_rows
from m6rec.nn.losses import catalogue_cross_entropy
from m6rec.nn.teaching import listwise_cross_entropy, listwise_kl, margin_mse
from m6rec.tasks.base import Loss, WrappedTask
from m6rec.tasks.retrieval.task import Retrieval
from m6rec.tasks.retrieval.windows import Window
from m6rec.training.dense_config import DenseConfig, HardConfig
from m6rec.training.judges import Ranker
from m6rec.training.lists import Lists
from m6rec.training.mining import target_events
from m6rec.training.moments import TakenItems
from m6rec.training.negatives import draw, sure_negatives
from m6rec.training.pseudo import PseudoLabels, PseudoWindow

Pairs = tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lessons:
    """What a retriever is taught with beside the log.

    Args:
        lists: of every training position.
        ranker: scores their numbers; calibrated.
        items: ``[num_items, dim]`` the mining retriever's vectors, in logits against its states.
        pseudo: pseudo labels; ``None`` = none.
        mine: epoch -> new lists, made with the retriever as it is by then; ``None`` = they stay.
    """

    lists: Lists
    ranker: Ranker
    items: Float[Tensor, "items dim"]
    pseudo: PseudoLabels | None = None
    mine: Callable[[int], Lists] | None = None


@dataclass(frozen=True)
class DenseBatch:
    """Windows in chunks, and what each position is taught with.

    Args:
        parts: the inner task's batches, one a chunk.
        taken: (position, item) that a position's user has taken at some time.
        negatives: ``[positions, num]`` items.
        places: ``[positions, 1 + places]`` a list that the ranker has judged, the target first, -1 = none.
        numbers: ``[positions, 1 + places, num_numbers]`` what it goes by.
        states: ``[positions, dim]`` the mining retriever's states.
    """

    parts: tuple[Any, ...]
    taken: Pairs
    negatives: Int[Tensor, "positions num"]
    places: Int[Tensor, "positions places"]
    numbers: Float[Tensor, "positions places numbers"]
    states: Float[Tensor, "positions dim"]

    def to(self, device: torch.device | str) -> "DenseBatch":
        """Return the batch on ``device``."""
        tensors = (self.negatives, self.places, self.numbers, self.states)
        rows, items = (column.to(device) for column in self.taken)
        parts = tuple(part.to(device) for part in self.parts)
        return DenseBatch(parts, (rows, items), *(tensor.to(device) for tensor in tensors))


class DenseRetrieval(WrappedTask):
    """A retrieval task with negatives across processes, denoised hard negatives, pseudo labels and a teacher.

    Source: RocketQA (2010.08191), all of section 3; RocketQAv2 (2110.07367) for the listwise teacher and the joint
        form; GISTEmbed (2402.16829) for the guide.
    Differs: every position of a window is a query, and the items that the batch's windows hold are its passages, each
        once; a mined item is one more of them for everybody.

    Args:
        inner: the task.
        config: what is taught.
        lessons: from which; ``None`` = large batches alone.
    """

    inner: Retrieval

    def __init__(self, inner: Retrieval, config: DenseConfig, lessons: Lessons | None = None) -> None:
        super().__init__(inner)
        if config.needs_lists and lessons is None:
            raise ConfigError("hard negatives, pseudo labels, a guide and distillation need a teacher's lists")
        self.config, self.lessons = config, lessons
        self.num_items = inner.material.table.num_items
        self._taken, self._mined = TakenItems(inner.material.train), 0
        self.ranker = lessons.ranker.requires_grad_(config.distil.joint) if lessons else None
        self._pseudo = lessons.pseudo.windows if lessons and lessons.pseudo else []
        if lessons:
            self._take_in(lessons.lists)

    def _take_in(self, lists: Lists) -> None:
        """Keep lists by row: those of the log's positions first, those of the pseudo labels after them."""
        assert self.lessons is not None
        self._first_pseudo = len(lists)
        if self.lessons.pseudo is not None:
            labelled = self.lessons.pseudo.lists
            # Another retriever may have labelled them, in its own space: no guide sees these, for NaN is above nothing.
            unseen = np.full((len(labelled), lists.states.shape[1]), np.nan, np.float16)
            lists = Lists.joined([lists, replace(labelled, states=unseen)])
        self._row_of = np.full(self.inner.material.train.num_events, -1, dtype=np.int64)
        self._row_of[lists.events[: self._first_pseudo]] = np.arange(self._first_pseudo)
        hard = self.config.hard
        kept = sure_negatives(self.lessons.ranker.probabilities(lists.numbers), lists.ids, hard.rule, hard.threshold)
        if hard.num:
            _tell(kept, lists.ids[:, 1:] >= 0, hard)
        self.lists, self._kept = lists, torch.from_numpy(kept)
        self._ids = torch.from_numpy(lists.ids.astype(np.int64))

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Bring the inner task up to date, and take in the lists that the schedule has mined last."""
        super().refresh(backbone, epoch)
        every = self.config.hard.refresh_every
        latest = epoch - epoch % every if every else 0
        if self.lessons is not None and self.lessons.mine is not None and latest > self._mined:
            self._take_in(self.lessons.mine(latest))
            self._mined = latest

    def examples(self) -> "Sequence[Window]":
        """Return the log's windows, and the pseudo-labelled ones after them."""
        return Joined(self.inner.examples(), self._pseudo) if self._pseudo else self.inner.examples()

    def lengths(self) -> Sequence[int]:
        """Return each window's number of events."""
        return [*self.inner.lengths(), *map(len, self._pseudo)]

    def collate(self, examples: list[Window]) -> DenseBatch:
        """Make one batch: the inner task's, and for each position what it is taught with."""
        size = self.config.chunk or len(examples)
        chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
        parts = tuple(self.inner.collate(chunk) for chunk in chunks)
        counts = [len(target_events([window], self.num_items)) for window in examples]
        taken = self._taken_pairs(examples, counts)
        if self.lessons is None:
            total = sum(counts)
            none = torch.empty(total, 0)
            return DenseBatch(parts, taken, none.long(), none.long(), none[..., None], none)
        rows = torch.from_numpy(self._rows(examples))
        negatives = torch.empty(len(rows), 0, dtype=torch.long)
        if self.config.hard.num:
            negatives = draw(self._kept[rows], self._ids[rows, 1:], self.config.hard.num, self.num_items)
        places, numbers = self._teaching(rows)
        return DenseBatch(parts, taken, negatives, places, numbers, torch.from_numpy(self.lists.states)[rows].float())

    def _taken_pairs(self, examples: Sequence[Window], counts: Sequence[int]) -> Pairs:
        if not self.config.mask_taken:
            return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        users = np.repeat([window.user for window in examples], counts)
        rows, items = self._taken.of(users)
        return torch.from_numpy(rows), torch.from_numpy(items)

    def _rows(self, examples: Sequence[Window]) -> NDArray[np.int64]:
        """Return the row of each position's list."""
        return np.concatenate(
            [
                np.array([self._first_pseudo + window.row])
                if isinstance(window, PseudoWindow)
                else self._row_of[target_events([window], self.num_items)]
                for window in examples
            ]
        )

    def _teaching(self, rows: Int[Tensor, " positions"]) -> tuple[Tensor, Tensor]:
        """Return the target and some mined items of each position, and the ranker's numbers of them."""
        if not self.config.distil.weight:
            return torch.empty(len(rows), 0, dtype=torch.long), torch.empty(len(rows), 0, 1)
        ids = self._ids[rows]
        keys = torch.rand(len(rows), ids.shape[1] - 1).masked_fill(ids[:, 1:] < 0, -1.0)
        chosen = keys.topk(min(self.config.distil.places, keys.shape[1]), dim=1).indices + 1
        chosen = torch.cat([torch.zeros_like(chosen[:, :1]), chosen], dim=1)
        numbers = torch.from_numpy(self.lists.numbers[rows[:, None].numpy(), chosen.numpy()])
        return ids.gather(1, chosen), numbers

    def loss(self, backbone: Backbone, batch: DenseBatch) -> Loss:
        """Return the contrastive loss over every position, and what the ranker teaches beside it."""
        compared = torch.unique(torch.cat([*map(self.inner.columns, batch.parts), batch.negatives.flatten()]))
        columns = torch.unique(torch.cat([compared, batch.places[batch.places >= 0]]))
        vectors = self._vectors(backbone, columns)
        states, targets, met = self._positions(backbone, batch, vectors, columns)
        users = F.normalize(states.float(), dim=1) * torch.exp(-self.inner.log_temperature)
        num_own = int((columns < self.num_items).sum())
        columns, items = columns[:num_own], F.normalize(vectors[:num_own].float(), dim=1)
        # What only the ranker's lists hold is no negative: it may well be what the user wanted.
        chosen = torch.isin(columns, compared)
        value = self._contrastive(batch, users, targets, met, columns[chosen], items[chosen])
        figures = {"temperature": float(torch.exp(self.inner.log_temperature.detach()))}
        if batch.places.shape[1]:
            taught, more = self._taught(users, items, columns, batch)
            value, figures = value + taught, figures | more
        return Loss(value, float(len(targets)), figures)

    def _contrastive(
        self, batch: DenseBatch, users: Tensor, targets: Tensor, met: Pairs, columns: Tensor, items: Tensor
    ) -> Tensor:
        """Return the loss of every position against the columns of all processes, without what is no negative."""
        if self.config.gather:
            columns, items = gather_columns(columns, items)
        excluded = _excluded([met, batch.taken, self._guided(batch, columns, targets)], columns, targets)
        log_q = self._log_q(batch, columns, len(targets))
        if log_q is not None:  # one more dimension takes it off every score
            users, items = F.pad(users, (0, 1), value=1.0), torch.cat([items, -log_q[:, None]], dim=1)
        return catalogue_cross_entropy(users, items, torch.searchsorted(columns, targets), excluded)

    def _vectors(self, backbone: Backbone, columns: Int[Tensor, " columns"]) -> Float[Tensor, "columns dim"]:
        size = self.config.chunk if self.config.chunk and self.inner.trains_backbone else max(1, len(columns))
        return torch.cat(in_chunks(lambda part: self.inner.vectors(backbone, part), columns.split(size)))

    def _positions(
        self, backbone: Backbone, batch: DenseBatch, vectors: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor, Pairs]:
        """Return the inner task's states, targets and (position, item) pairs, positions numbered over all chunks."""
        found = in_chunks(lambda part: self.inner.positions(backbone, part, vectors, columns), batch.parts)
        states, targets, pairs = zip(*found, strict=True)
        starts = np.cumsum([0, *map(len, targets)])
        rows = [rows + int(start) for (rows, _), start in zip(pairs, starts, strict=False)]
        return torch.cat(states), torch.cat(targets), (torch.cat(rows), torch.cat([items for _, items in pairs]))

    @torch.no_grad()
    def _guided(self, batch: DenseBatch, columns: Int[Tensor, " columns"], targets: Tensor) -> Pairs:
        """Return (position, item) pairs that the guide takes for positives."""
        none = torch.empty(0, dtype=torch.long, device=targets.device)
        if self.config.guide is None or self.lessons is None:
            return none, none
        items = self.lessons.items.to(targets.device)
        scores = batch.states @ items[columns].T
        limit = (batch.states * items[targets]).sum(1) - self.config.guide
        rows, places = (scores > limit[:, None]).nonzero(as_tuple=True)
        return rows, columns[places]

    @torch.no_grad()
    def _log_q(
        self, batch: DenseBatch, columns: Int[Tensor, " columns"], positions: int
    ) -> Float[Tensor, " columns"] | None:
        """Return the log of each column's chance to be in the batch; certain for what was mined for it.

        Source: Yi et al., RecSys 2019. Differs: a column stands in the batch once, however often it is drawn, so that
            its chance is 1 - (1 - share) ** draws, and the whole catalogue needs no correction.
        """
        config = self.inner.config
        if not config.logq or config.negatives == "catalogue":
            return None
        counts = self.inner.material.target_counts.to(columns.device)
        share = (counts[columns] + 1) / (counts.sum() + len(counts))
        drawn, mined = torch.tensor([positions], device=columns.device), torch.unique(batch.negatives)
        if self.config.gather:
            drawn, mined = gather_rows(drawn), gather_rows(mined)
        log_q = torch.log(-torch.expm1(drawn.sum() * torch.log1p(-share)))
        return log_q.masked_fill(torch.isin(columns, mined), 0.0)

    def _taught(
        self, users: Tensor, items: Tensor, columns: Tensor, batch: DenseBatch
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted loss against the ranker, the ranker's own beside it where both learn."""
        assert self.ranker is not None
        distil, keep = self.config.distil, batch.places >= 0
        places = torch.searchsorted(columns, batch.places.clamp(min=0)).clamp(max=len(columns) - 1)
        student = torch.einsum("nd,nkd->nk", users, items[places])
        teacher = self.ranker(batch.numbers)
        # Losses are means over the lists that say something; the batch's mean is over positions.
        share = (keep.sum(1) > 1).float().mean()
        if distil.loss == "kl":
            value = listwise_kl(student, teacher, keep, distil.temperature)
        else:
            value = margin_mse(student, teacher, keep)
        figures: dict[str, float] = {distil.loss: float(value.detach())}
        value = distil.weight * value
        if distil.joint:
            own = listwise_cross_entropy(teacher, keep)
            value, figures = value + own, figures | {"ranker": float(own.detach())}
        return value * share, figures


def _tell(kept: NDArray[np.bool_], mined: NDArray[np.bool_], hard: HardConfig) -> None:
    """Log how many of the mined items are sure negatives."""
    logger.info(
        "hard negatives: %.1f of %.1f mined items a position are sure (%s %g); %.1f%% of positions have none",
        kept.sum(1).mean(), mined.sum(1).mean(), hard.rule, hard.threshold, 100 * (~kept.any(1)).mean(),
    )  # fmt: skip
    if not kept.any():
        logger.warning(
            "no mined item is a sure negative under %s %g: all hard negatives are random ones; raise "
            "dense.hard.threshold or take another dense.hard.rule",
            hard.rule, hard.threshold,
        )  # fmt: skip


class Joined(Sequence[Window]):
    """Two sequences of windows, one after the other."""

    def __init__(self, first: Sequence[Window], second: Sequence[Window]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: Any) -> Any:
        return self._first[index] if index < len(self._first) else self._second[index - len(self._first)]


def _excluded(pairs: Sequence[Pairs], columns: Int[Tensor, " columns"], targets: Int[Tensor, " positions"]) -> Pairs:
    """Return (position, item) pairs as (position, column) pairs by position, without targets and absent items."""
    rows, items = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    places = torch.searchsorted(columns, items).clamp(max=len(columns) - 1)
    kept: Bool[Tensor, " pairs"] = (columns[places] == items) & (items != targets[rows])
    rows, places = rows[kept], places[kept]
    order = rows.argsort(stable=True)
    return rows[order], places[order]
