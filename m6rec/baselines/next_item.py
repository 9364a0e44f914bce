"""Train a network to name the next item at every position, and rank the catalogue by its last state.

What the baselines over item sequences share. This module knows no network.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.baselines.sequences import recent_rows, window_batches
from m6rec.baselines.sparse import popularity_prior
from m6rec.baselines.stopping import TrainingLog, hold_out_last, mean_ndcg, sample_queries, train_until_plateau
from m6rec.data.histories import Histories, Queries
from m6rec.errors import DataError
from m6rec.nn.losses import catalogue_cross_entropy


@dataclass(frozen=True)
class NextItemConfig:
    """Settings of the training, whatever the network; all change results unless said otherwise."""

    max_length: int = 50
    """Latest items fed."""
    learning_rate: float = 2e-3
    """Of AdamW."""
    weight_decay: float = 0.0
    """Of AdamW."""
    batch_tokens: int = 2048
    """Positions per step, padding included."""
    num_negatives: int = 0
    """0 = softmax over the whole catalogue; else over the target and this many uniform negatives drawn per step."""
    max_epochs: int = 200
    """Upper bound on epochs; the plateau should come first (the log says which ended the training)."""
    patience: int = 3
    """Epochs without a new best that make a plateau."""
    decays: int = 1
    """Plateaus at which the learning rate falls to a fifth before the next one ends the training."""
    holdout: float = 0.1
    """Share of users whose last training event stops the training, where ``fit`` gets no validation queries."""
    max_queries: int = 5000
    """Validation queries used per epoch, drawn once."""
    bf16: bool = False
    """Autocast to bfloat16; mostly speed (1.5 times where the processor has it, a loss where it has not)."""
    seed: int = 0
    """Of weights, batches and dropout."""


class ItemNetwork(nn.Module, ABC):
    """States of item sequences, and the item vectors that they are compared with."""

    @abstractmethod
    def forward(self, items: Tensor) -> Tensor:
        """Return ``[batch, length, width]`` states of ``items`` (``[batch, length]`` ids, ``-1`` = padding)."""

    @abstractmethod
    def table(self) -> Tensor:
        """Return ``[num_items, width]`` what a state is multiplied with to score each item."""


class NextItemBaseline(ABC):
    """Base of the networks over item sequences that are trained on the next item at every position.

    A subclass gives ``name``, ``Config`` (a :class:`NextItemConfig`), ``search_space`` and ``build``. Trained until
    NDCG@10 on held-out events stops rising; long histories are cut into windows instead of losing their beginning. A
    user without history gets the popular items.

    Args:
        config: the settings.

    Attributes:
        network: the trained network, after ``fit``.
        log: how its training went.
    """

    name: ClassVar[str]
    Config: ClassVar[type[NextItemConfig]]
    config: Any
    network: ItemNetwork
    log: TrainingLog

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @abstractmethod
    def build(self, num_items: int) -> ItemNetwork:
        """Return a new network; torch's random numbers are already drawn from ``config.seed``."""

    def fit(self, train: Histories, valid: Queries | None = None) -> None:
        """Train until NDCG@10 on held-out events stops rising.

        Args:
            train: training events.
            valid: validation queries to stop on; without them the last training event of some users is held out (see
                ``Config.holdout``). Test queries must never come here.

        Raises:
            DataError: nobody has two events, so there is no next item to learn.
        """
        if valid is None:
            train, valid = hold_out_last(train, self.config.holdout, self.config.max_queries, self.config.seed)
        valid = sample_queries(valid, self.config.max_queries, self.config.seed)
        if not (np.diff(train.select(train.items >= 0).offsets) >= 2).any():
            raise DataError(f"got no user with two training events, expected some: {self.name} learns from pairs")
        self._prior = popularity_prior(train, 1.0)
        self._rng = np.random.default_rng(self.config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.network = self.build(train.num_items)
            self._optimizer = torch.optim.AdamW(
                self.network.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
            )
            self.log = train_until_plateau(
                self.network,
                self._optimizer,
                lambda: self._run_epoch(train),
                lambda: mean_ndcg(self.score, valid),
                metric="ndcg@10",
                max_epochs=self.config.max_epochs,
                patience=self.config.patience,
                decays=self.config.decays,
            )

    def _run_epoch(self, train: Histories) -> float:
        total, count = 0.0, 0
        for inputs, targets in window_batches(train, self.config.max_length, self.config.batch_tokens, self._rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
                loss = self._loss(torch.from_numpy(inputs), torch.from_numpy(targets))
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self._optimizer.step()
            positions = int((targets >= 0).sum())
            total, count = total + loss.item() * positions, count + positions
        return total / count

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        keep = inputs >= 0
        states, wanted, table = self.network(inputs)[keep], targets[keep], self.network.table()
        if not self.config.num_negatives:
            return catalogue_cross_entropy(states, table, wanted)
        drawn = torch.from_numpy(self._rng.integers(len(table), size=self.config.num_negatives))
        negatives = (states @ table[drawn].T).masked_fill(drawn == wanted[:, None], float("-inf"))
        scores = torch.cat([(states * table[wanted]).sum(1, keepdim=True), negatives], dim=1)
        return F.cross_entropy(scores.float(), torch.zeros_like(wanted))

    @torch.no_grad()
    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]`` logits; popularity where the history is empty."""
        rows = torch.from_numpy(recent_rows(queries.history, queries.users, self.config.max_length))
        lengths = (rows >= 0).sum(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            states = self.network(rows)[torch.arange(len(rows)), (lengths - 1).clamp(min=0)]
        scores: NDArray[np.float32] = (states.float() @ self.network.table().T).numpy()
        scores[lengths.numpy() == 0] = self._prior
        return scores
