"""A backbone and a task small enough to train in milliseconds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.tasks.base import Loss, Task
from m6rec.text.batch import TokenBatch
from tests.tasks.conftest import make

__all__ = ["make"]  # small experiments, as the tasks are tested with

VOCABULARY, WIDTH = 11, 6


class ToyBackbone(Backbone):
    """An embedding, one layer with dropout, a norm, and a trained parameter that no loss ever uses."""

    family = "encoder"
    name = fingerprint = "toy"
    hidden_size, num_layers, max_tokens, tokenizer = WIDTH, 1, 16, None

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.table.weight.requires_grad_(False)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(dropout))
        self.last = nn.LayerNorm(WIDTH)
        self.control = nn.Parameter(torch.zeros(4, WIDTH))

    def rows(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def enter(self, rows: Tensor, positions: Tensor) -> Tensor:
        return rows

    def mask(self, batch: TokenBatch) -> Tensor:
        return torch.zeros_like(batch.ids[:, None, None], dtype=torch.float32)

    def layer(self, index: int, hidden: Tensor, mask: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        return hidden + self.model(hidden)

    def norm(self, hidden: Tensor) -> Tensor:
        return self.last(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.table.weight.T


class ToyTask(Task):
    """Regress the sine of every kept token; examples have 1 to 5 tokens, so that weights differ.

    What ``before_loss`` holds for the n-th batch (from 1) is called in it, and may give a factor of the loss.
    """

    name = "toy"

    def __init__(self, num_examples: int = 23, seed: int = 1) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 6, (num_examples,), generator=rng).tolist()
        self._examples = [
            (number, ids := torch.randint(1, VOCABULARY, (size,), generator=rng), ids.float().sin())
            for number, size in enumerate(sizes)
        ]
        self.head = nn.Linear(WIDTH, 1)
        self.register_buffer("centre", torch.zeros(WIDTH))
        self.before_loss: dict[int, Callable[[], float | None]] = {}
        self.seen: list[list[int]] = []

    def examples(self) -> list[Any]:
        return self._examples

    def lengths(self) -> list[int]:
        return [len(ids) for _, ids, _ in self._examples]

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        pad = nn.utils.rnn.pad_sequence
        ids = pad([ids for _, ids, _ in examples], batch_first=True)
        zeros = torch.zeros_like(ids)
        return {
            "number": torch.tensor([number for number, _, _ in examples]),
            "tokens": TokenBatch(ids, ids > 0, zeros, zeros, zeros),
            "target": pad([target for _, _, target in examples], batch_first=True),
        }

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        hidden = backbone.layer(0, backbone.table.weight, torch.zeros(1), torch.zeros(1))
        self.centre = backbone.norm(hidden).mean(0) + torch.rand(1)

    def loss(self, backbone: Backbone, batch: dict[str, Any]) -> Loss:
        self.seen.append(batch["number"].tolist())
        keep = batch["tokens"].keep
        guess = self.head(backbone(batch["tokens"]) - self.centre).squeeze(-1)
        value = ((guess - batch["target"]) ** 2)[keep].mean()
        if surprise := self.before_loss.get(len(self.seen)):
            value = value * (surprise() or 1.0)
        return Loss(value, float(keep.sum()), {"mean_guess": guess[keep].mean().item()})


# Building and saving a task are no business of the loop: it must do with examples, collate and loss.
ToyTask.__abstractmethods__ = frozenset()


@pytest.fixture(scope="session")
def toys() -> Callable[..., tuple[ToyTask, ToyBackbone]]:
    """Build a fresh task and backbone, always the same ones."""

    def build(dropout: float = 0.0, **settings: Any) -> tuple[ToyTask, ToyBackbone]:
        backbone = ToyBackbone(dropout)
        return ToyTask(**settings), backbone

    return build
