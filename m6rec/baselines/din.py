"""DIN: the candidate looks at the history. It knows ids, verbs and values, no text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.baselines.stopping import TrainingLog, train_until_plateau
from m6rec.data.histories import Histories, Judgements
from m6rec.errors import DataError
from m6rec.metrics.ranking import auc


@dataclass(frozen=True)
class DINConfig:
    """Settings of :class:`DIN`; all change results."""

    width: int = 32
    """Size of item, verb and value vectors."""
    hidden: int = 64
    """Width of the first hidden layer of the scoring network; the second has half of it."""
    max_history: int = 50
    """Latest events that a pair looks at."""
    num_values: int = 10
    """Levels into which event values (ratings) are cut, at quantiles of training."""
    dropout: float = 0.3
    """Share of values dropped from the item vectors and inside the scoring network."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 0.1
    """Of AdamW."""
    batch_size: int = 256
    """Pairs per step."""
    max_epochs: int = 50
    """Upper bound on epochs; the plateau should come first (the log says which ended the training)."""
    patience: int = 2
    """Epochs without a new best that make a plateau."""
    decays: int = 1
    """Plateaus at which the learning rate falls to a fifth before the next one ends the training."""
    holdout: float = 0.1
    """Share of each user's latest training pairs that stop the training, where no validation pairs are given."""
    seed: int = 0
    """Of weights, batches and dropout."""


class DIN:
    """Deep interest network: target attention of a candidate over the user's events, then a small network.

    **Source:** Zhou et al., Deep interest network for click-through rate prediction, 2018, equation 3 (weights are not
    normalised, so that the strength of an interest is kept).
    **Differs:** an event's vector is the sum of item, verb and value vectors (the paper has categories instead); the
    sum over events is divided by the root of their number; GELU instead of Dice; trained until validation AUC stops
    rising (DIN overfits within an epoch or two when nobody looks).
    """

    name = "din"
    Config = DINConfig
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "width": (8, 16, 32, 64),
        "dropout": (0.1, 0.3, 0.5),
        "learning_rate": (5e-4, 1e-3, 2e-3),
        "weight_decay": (0.01, 0.1, 1.0),
        "max_history": (20, 50, 100),
    }

    def __init__(self, config: DINConfig | None = None) -> None:
        self.config = config or DINConfig()

    def fit_pairs(self, train: Judgements, valid: Judgements | None = None) -> None:
        """Train until AUC on held-out pairs stops rising.

        Args:
            train: training judgements.
            valid: validation pairs to stop on; without them each user's latest training pairs are held out (see
                ``Config.holdout``). Test pairs must never come here.

        Raises:
            DataError: there is nothing to learn from.
        """
        if valid is None:
            train, valid = _hold_out_latest(train, self.config.holdout, self.config.seed)
        if not len(train) or not len(valid):
            raise DataError(f"got {len(train)} training and {len(valid)} held-out pairs, expected some of both")
        self._edges = _value_edges(train.history, self.config.num_values)
        self._rng = np.random.default_rng(self.config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            history = train.history
            self.network = DINNetwork(history.num_items, len(history.verb_names), len(self._edges) + 1, self.config)
            nn.init.constant_(self.network.output.bias, float(_logit(train.labels.mean())))
            self._optimizer = torch.optim.AdamW(
                self.network.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
            )
            self.log: TrainingLog = train_until_plateau(
                self.network,
                self._optimizer,
                lambda: self._run_epoch(train),
                lambda: auc(valid.labels, self.score_pairs(valid)),
                metric="auc",
                max_epochs=self.config.max_epochs,
                patience=self.config.patience,
                decays=self.config.decays,
            )

    def _run_epoch(self, train: Judgements) -> float:
        total = 0.0
        for chosen in _chunks(self._rng.permutation(len(train)), self.config.batch_size):
            labels = torch.from_numpy(train.labels[chosen])
            loss = F.binary_cross_entropy_with_logits(self._logits(train, chosen), labels)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            total += loss.item() * len(chosen)
        return total / len(train)

    def _logits(self, pairs: Judgements, chosen: NDArray[np.int64]) -> Tensor:
        items, verbs, values = events_before(pairs, chosen, self.config.max_history, self._edges)
        candidates = torch.from_numpy(pairs.items[chosen].astype(np.int64))
        return torch.as_tensor(self.network(candidates, *map(torch.from_numpy, (items, verbs, values))))

    @torch.no_grad()
    def score_pairs(self, pairs: Judgements) -> NDArray[np.float32]:
        """Return ``[num_pairs]`` probabilities of a yes."""
        parts = [torch.sigmoid(self._logits(pairs, chosen)) for chosen in _chunks(np.arange(len(pairs)), 4096)]
        return torch.cat(parts).numpy() if parts else np.empty(0, np.float32)


class DINNetwork(nn.Module):
    """Target attention and scoring network.

    Args:
        num_items: size of the catalogue.
        num_verbs: verbs of the log.
        num_values: levels of event values.
        config: see :class:`DINConfig`.
    """

    def __init__(self, num_items: int, num_verbs: int, num_values: int, config: DINConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        # Row 0 is "none": no item, no verb, no value.
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.verbs = nn.Embedding(num_verbs + 1, width, padding_idx=0)
        self.values = nn.Embedding(num_values + 1, width, padding_idx=0)
        for table in (self.items, self.verbs, self.values):
            nn.init.normal_(table.weight, std=0.05)
            nn.init.zeros_(table.weight[0])
        self.dropout = nn.Dropout(config.dropout)
        self.attention = nn.Sequential(nn.Linear(4 * width, hidden // 2), nn.GELU(), nn.Linear(hidden // 2, 1))
        self.hidden = nn.Sequential(
            nn.Linear(3 * width, hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, hidden // 2),
            nn.GELU(),
        )
        self.output = nn.Linear(hidden // 2, 1)

    def forward(self, candidates: Tensor, items: Tensor, verbs: Tensor, values: Tensor) -> Tensor:
        """Return ``[batch]`` logits.

        Args:
            candidates: ``[batch]`` item ids.
            items: ``[batch, length]`` item ids of the events, ``-1`` = padding.
            verbs: ``[batch, length]`` verb numbers, ``-1`` = none.
            values: ``[batch, length]`` value levels, ``-1`` = none.
        """
        keep = (items >= 0)[..., None]
        candidate = self.dropout(self.items(candidates + 1))
        events = self.dropout(self.items(items + 1)) + self.verbs(verbs + 1) + self.values(values + 1)
        beside = candidate[:, None].expand_as(events)
        weights = self.attention(torch.cat([events, beside, events - beside, events * beside], dim=-1))
        interest = (weights * events * keep).sum(1) / keep.sum(1).clamp(min=1).sqrt()
        hidden = self.hidden(torch.cat([interest, candidate, interest * candidate], dim=-1))
        return torch.as_tensor(self.output(hidden)[:, 0])


def events_before(
    pairs: Judgements, chosen: NDArray[np.int64], length: int, edges: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return items, verbs and value levels, each ``[n, length]``, of the latest events that each pair may see.

    Events stand at the end of a row; ``-1`` where there is none.
    """
    history = pairs.history
    begins = history.offsets[pairs.users[chosen]][:, None]
    events = begins + pairs.lengths[chosen][:, None] - length + np.arange(length)
    real = events >= begins
    events = np.where(real, events, 0)
    none = np.full(events.shape, -1, dtype=np.int64)
    if not history.num_events:
        return none, none, none
    items = np.where(real, history.items[events], -1).astype(np.int64)
    verbs = none if history.verbs is None else np.where(real, history.verbs[events], -1).astype(np.int64)
    if history.values is None:
        return items, verbs, none
    values = history.values[events]
    levels = np.where(real & ~np.isnan(values), np.searchsorted(edges, values, side="right"), -1)
    return items, verbs, levels


def _value_edges(history: Histories, count: int) -> NDArray[np.float32]:
    """Return at most ``count - 1`` increasing borders between value levels."""
    values = np.empty(0, np.float32) if history.values is None else history.values[~np.isnan(history.values)]
    distinct = np.unique(values)
    if len(distinct) <= count:
        return distinct[1:]
    return np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1])).astype(np.float32)


def _hold_out_latest(pairs: Judgements, share: float, seed: int) -> tuple[Judgements, Judgements]:
    """Return the pairs without each user's latest ``share`` (rounded up or down by chance), and those."""
    order = np.lexsort((pairs.lengths, pairs.users))
    users = pairs.users[order]
    counts = np.bincount(users, minlength=pairs.history.num_users)
    from_end = np.cumsum(counts)[users] - 1 - np.arange(len(order))
    held = np.zeros(len(pairs), dtype=np.bool_)
    quota = np.floor(share * counts + np.random.default_rng(seed).random(len(counts)))
    held[order] = from_end < quota[users]
    return _take(pairs, np.flatnonzero(~held)), _take(pairs, np.flatnonzero(held))


def _take(pairs: Judgements, which: NDArray[np.int64]) -> Judgements:
    columns = {name: getattr(pairs, name)[which] for name in ("users", "items", "labels", "lengths")}
    return replace(pairs, **columns)


def _chunks(numbers: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _logit(rate: float) -> float:
    rate = min(max(rate, 1e-3), 1 - 1e-3)
    return float(np.log(rate / (1 - rate)))
