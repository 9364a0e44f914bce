"""A predictor that a user's known events modulate: which operations, at which positions, is a structure to be searched.

Source: ColdNAS (Du et al., 2306.03387): a set encoder makes parameter vectors from the support set; the search space is
    at most one each of max, min, mul and add before every layer of the predictor.
Differs: where the public code is wrong or the paper's choice does harm, each said at its place. The predictor adds to
    what a closed form says of the pair, so that an untrained one is no worse than that.

It knows no search, no user by name and no loop. The search is :mod:`m6rec.coldstart.search`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.coldstart.events import ColdBatch, Events, ItemTable
from m6rec.errors import ConfigError
from m6rec.nn import pooling
from m6rec.nn.modulation import OPS, Op, modulate

# Bounds of max and min begin two units out: little is cut at first, yet gradients reach the bounds. (At zero the two
# together would leave nothing.)
MARGINS: dict[Op, float] = {"max": -2.0, "min": 2.0, "mul": 0.0, "add": 0.0}


@dataclass(frozen=True)
class Structure:
    """Which operations stand at which positions.

    Args:
        gates: ``[positions][operations]`` in the order of :data:`OPS`.

    >>> print(Structure.film(2))
    mul+add | mul+add
    """

    gates: tuple[tuple[bool, ...], ...]

    @classmethod
    def none(cls, positions: int) -> "Structure":
        """Return the predictor without any modulation."""
        return cls(((False,) * len(OPS),) * positions)

    @classmethod
    def everything(cls, positions: int) -> "Structure":
        """Return all operations everywhere: the supernet's."""
        return cls(((True,) * len(OPS),) * positions)

    @classmethod
    def film(cls, positions: int) -> "Structure":
        """Return scale and shift everywhere (FiLM, Perez et al., 1709.07871)."""
        return cls((tuple(name in ("mul", "add") for name in OPS),) * positions)

    @classmethod
    def top(cls, scores: NDArray[np.floating], number: int) -> "Structure":
        """Return the ``number`` best gates of ``scores`` ``[positions, operations]``."""
        chosen = np.zeros(scores.size, dtype=bool)
        chosen[np.argsort(-scores.reshape(-1), kind="stable")[:number]] = True
        return cls(tuple(tuple(row) for row in chosen.reshape(scores.shape).tolist()))

    @classmethod
    def random(cls, positions: int, number: int, rng: np.random.Generator) -> "Structure":
        """Return ``number`` gates drawn without looking."""
        return cls.top(rng.random((positions, len(OPS))), number)

    @property
    def size(self) -> int:
        """Number of gates."""
        return sum(map(sum, self.gates))

    @property
    def is_collapsed(self) -> bool:
        """Whether several gates are all of one operation, as when a search has found no structure at all."""
        used = {name for row in self.gates for name, gate in zip(OPS, row, strict=True) if gate}
        return self.size > 1 and len(used) == 1

    def __str__(self) -> str:
        """Return the operations of each position."""
        rows = ("+".join(n for n, gate in zip(OPS, row, strict=True) if gate) for row in self.gates)
        return " | ".join(row or "-" for row in rows)


@dataclass(frozen=True)
class ModulationConfig:
    """Settings of the modulated predictor; all change results."""

    structure: Literal["searched", "film", "all", "random", "none"] = "searched"
    """What modulates: found by a search on the validation users, or one of its controls."""
    num_gates: tuple[int, ...] = (2, 4, 6)
    """Sizes of structure that the search compares; a random one has the middle size."""
    predictor: Literal["mlp", "ladder", "lm"] = "mlp"
    """The published network over features of item and user; one whose every layer also reads a layer of the frozen
    language model; or the language model itself, whose layers the tuner `conditioned` modulates (with `tuner.ops` and
    `tuner.gated` in place of a structure here)."""
    widths: tuple[int, ...] = (128, 64, 32)
    """Layers of the predictor; one position stands before each, and one before the output."""
    embedding: int = 32
    """Width of the item's and of the user's embedding, each."""
    hidden: int = 256
    """Width of the set encoder."""
    dropout: float = 0.2
    """Before each layer of the predictor."""

    def __post_init__(self) -> None:
        if not self.num_gates or min(self.num_gates) < 1 or not self.widths:
            raise ConfigError(
                f"num_gates: got {self.num_gates}, expected sizes of 1 or more, and widths: a layer or more"
            )

    @property
    def positions(self) -> int:
        """Places where something can be modulated."""
        return len(self.widths) + 1


class SetEncoder(nn.Module):
    """Known events of a user to parameter vectors, whatever the events' order and number.

    No events give no parameters: zeros, with which every operation leaves (almost) everything as it is. Ten thousand
    events weigh what one does, for their mean is taken.

    Args:
        width: numbers of one event, its value among them.
        hidden: width inside.
        sizes: numbers that each gate needs.
    """

    def __init__(self, width: int, hidden: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.event, self.out = nn.Linear(width, hidden), nn.Parameter(torch.zeros(sum(sizes), hidden))
        nn.init.normal_(self.out, std=0.1 / math.sqrt(hidden))

    def forward(
        self, events: Float[Tensor, "users events width"], keep: Bool[Tensor, "users events"]
    ) -> tuple[Tensor, ...]:
        """Return one ``[users, 1, size]`` a gate."""
        inner = pooling.mean(F.leaky_relu(self.event(events)), keep)
        # A mean over three events says less than one over twenty.
        trust = keep.sum(1, keepdim=True) / (keep.sum(1, keepdim=True) + 3.0)
        return ((inner * trust) @ self.out.T)[:, None].split(self.sizes, dim=-1)


class Modulated(nn.Module):
    """The predictor under a structure; with ``soft`` gates it is the one-shot supernet.

    Args:
        config: settings.
        structure: which gates exist at all.
        item_width: numbers of one item: its features, its taste, and what is known of its worth (two).
        profile_width: numbers of one user's profile.
        layers: ``(number, width)`` of the backbone's states that a ladder reads.
        soft: whether each gate is learnt, from open by half.
    """

    def __init__(
        self,
        config: ModulationConfig,
        structure: Structure,
        item_width: int,
        profile_width: int,
        layers: tuple[int, int],
        soft: bool = False,
    ) -> None:
        super().__init__()
        if len(structure.gates) != config.positions:
            raise ConfigError(f"got {len(structure.gates)} positions in the structure, expected {config.positions}")
        self.config, self.structure = config, structure
        self.item = nn.Linear(item_width, config.embedding)
        self.user = nn.Linear(profile_width + 1, config.embedding)
        sizes = [2 * config.embedding, *config.widths]
        last = nn.Linear(sizes[-1], 1)
        for weight in (last.weight, last.bias):
            nn.init.zeros_(weight)
        self.layers = nn.ModuleList([*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)), last])
        # The first layer reads the backbone's output already; each layer's own output takes a lower state along.
        rungs = [nn.Linear(layers[1], size) for size in (sizes[1:] if config.predictor == "ladder" else [])]
        for rung in rungs:
            nn.init.normal_(rung.weight, std=0.3 / math.sqrt(layers[1]))
        self.rungs = nn.ModuleList(rungs)
        self.places = [
            (position, operation)
            for position, row in enumerate(structure.gates)
            for operation, gate in zip(OPS, row, strict=True)
            if gate
        ]
        self.encoder = SetEncoder(item_width + 1, config.hidden, [sizes[position] for position, _ in self.places])
        self.gates = nn.Parameter(torch.zeros(len(self.places))) if soft else None

    def scores(self) -> NDArray[np.float32]:
        """Return ``[positions, operations]`` how far open each gate of a supernet is; 0 where there is none."""
        found = np.zeros((self.config.positions, len(OPS)), dtype=np.float32)
        opened = torch.ones(len(self.places)) if self.gates is None else torch.sigmoid(self.gates).detach().cpu()
        for (position, operation), gate in zip(self.places, opened.tolist(), strict=True):
            found[position, OPS.index(operation)] = gate
        return found

    def forward(self, table: ItemTable, batch: ColdBatch) -> Float[Tensor, "users events"]:
        """Return what users think of what is asked, in standard units."""
        level = user_levels(batch.support)
        known = torch.cat([read_items(table, batch.support), (batch.support.values - level)[..., None]], dim=-1)
        parameters = self.encoder(known, batch.support.keep)
        query = batch.query
        # A column of ones beside the profile, which may have none.
        own = self.user(F.pad(batch.profiles, (0, 1), value=1.0))[:, None].expand(-1, query.places.shape[1], -1)
        hidden = torch.cat([self.item(read_items(table, query)), own], dim=-1)
        for position, layer in enumerate(self.layers):
            hidden = self._modulated(position, hidden, parameters)
            hidden = layer(F.dropout(hidden, self.config.dropout, self.training))
            if position < len(self.layers) - 1:
                hidden = F.leaky_relu(hidden + self._rung(table, query, position))
        return query.base + level + hidden[..., 0]

    def _modulated(self, position: int, hidden: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        for number, (place, op) in enumerate(self.places):
            if place != position:
                continue
            operand = (parameters[number] + MARGINS[op]).expand_as(hidden)
            # From what came before, so that operations build on each other; the public supernet mixes each with the
            # position's untouched input, and the last one wipes out the others.
            hidden = modulate(hidden, op, operand, None if self.gates is None else torch.sigmoid(self.gates[number]))
        return hidden

    def _rung(self, table: ItemTable, query: Events, position: int) -> Tensor | float:
        if position >= len(self.rungs):
            return 0.0
        return self.rungs[position](table.texts[query.places, min(position, table.texts.shape[1] - 1)])


def read_items(table: ItemTable, events: Events) -> Float[Tensor, "users events width"]:
    """Return everything that is known of events' items: features, taste, and what others say of them."""
    return torch.cat([table.features(events.places), events.taste, events.means], dim=-1)


def user_levels(support: Events) -> Float[Tensor, "users 1"]:
    """Return each user's shrunk level, as the closed form has it."""
    missed = ((support.values - support.base) * support.keep).sum(1)
    return (missed / (5.0 + support.num_kept))[:, None]
