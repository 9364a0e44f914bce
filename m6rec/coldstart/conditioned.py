"""ColdNAS on the language model: it reads every asked item's words under a condition that the user's events make.

The conditioned tuner holds the gates, an operation a layer; here is what makes the condition, what reads the answer,
and the choice of gates on validation users. Knows no loop and no file.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from m6rec.backbones.base import Backbone, WrappedBackbone
from m6rec.backbones.conditions import Conditions, condition_size, given
from m6rec.coldstart.events import ColdBatch, ItemTable
from m6rec.coldstart.modulation import ModulationConfig, SetEncoder, Structure, read_items, user_levels
from m6rec.errors import ConfigError
from m6rec.nn.modulation import OPS
from m6rec.tasks.encoding import SegmentEncoder
from m6rec.tuners.conditioned import ConditionedBackbone, Modulation


class ConditionedReader(nn.Module):
    """What a user thinks of items, read at their words' mean state.

    Untrained it is the closed form. A user without events gives the condition that all have in common; over a backbone
    that takes no conditions it is the control without modulation.

    Args:
        config: settings.
        item_width: numbers of one item beside its words.
        backbone: that will read.
        max_tokens: longest text of an item.
    """

    def __init__(self, config: ModulationConfig, item_width: int, backbone: Backbone, max_tokens: int = 32) -> None:
        super().__init__()
        size = condition_size(backbone) or backbone.hidden_size
        # One number is a constant: the tuner norms a condition, which would else make few events as strong as many.
        self.encoder = SetEncoder(item_width + 1, config.hidden, [size - 1])
        self.norm, self.head = nn.LayerNorm(backbone.hidden_size), nn.Linear(backbone.hidden_size + item_width, 1)
        for weight in (self.head.weight, self.head.bias):
            nn.init.zeros_(weight)
        self.texts = SegmentEncoder(max_tokens=max_tokens)

    def forward(
        self, backbone: Backbone, words: Sequence[Sequence[int]], table: ItemTable, batch: ColdBatch
    ) -> Float[Tensor, "users events"]:
        """Return what users think of what is asked, in standard units.

        Args:
            backbone: tuned.
            words: tokens of each of the table's items.
            table: what else is known of items.
            batch: users, what they did, and what is asked.
        """
        support, query = batch.support, batch.query
        level = user_levels(support)
        known = torch.cat([read_items(table, support), (support.values - level)[..., None]], dim=-1)
        conditions = nn.functional.pad(self.encoder(known, support.keep)[0][:, 0], (0, 1), value=1.0)
        users, columns = query.keep.nonzero(as_tuple=True)
        under = given(backbone, Conditions(conditions, users[:, None]))
        tokens = self.texts.batch(backbone, [words[place] for place in query.places[users, columns].tolist()])
        states = self.norm(self.texts.read(under, tokens.to(users.device)))
        beside = read_items(table, query)[users, columns]
        answers = torch.zeros_like(query.base)
        answers[users, columns] = self.head(torch.cat([states, beside], dim=-1))[:, 0]
        return query.base + level + answers


def gates_of(backbone: Backbone) -> Modulation:
    """Return the gated operations of a conditioned backbone, whatever it is wrapped in.

    Raises:
        ConfigError: it has none.
    """
    while isinstance(backbone, WrappedBackbone):
        if isinstance(backbone, ConditionedBackbone) and isinstance(backbone.change, Modulation):
            if backbone.change.gated:
                return backbone.change
            break
        backbone = backbone.inner
    raise ConfigError("got a backbone without gates, expected tuner.name=conditioned with tuner.gated=true")


def choose(backbone: Backbone, sizes: Sequence[int], loss: Callable[[], float]) -> Structure:
    """Return the gates of a trained supernet that validation users are best predicted by; it stays as it was.

    Args:
        backbone: the supernet.
        sizes: numbers of gates to compare, the most open ones each.
        loss: of the supernet on validation users, as its gates stand.
    """
    change = gates_of(backbone)
    places = {(int(name.partition("-")[2]), name.partition("-")[0]): gate for name, gate in change.gates.items()}
    kept = {place: gate.detach().clone() for place, gate in places.items()}
    scores = np.full((len(change.ops), len(OPS)), -np.inf)
    for (layer, op), gate in kept.items():
        scores[layer, OPS.index(op)] = gate.item()
    losses = {}
    for structure in (Structure.top(scores, size) for size in sizes):
        for (layer, op), gate in places.items():
            gate.data.fill_(torch.inf if structure.gates[layer][OPS.index(op)] else -torch.inf)
        losses[structure] = loss()
    for place, gate in places.items():
        gate.data.copy_(kept[place])
    return min(losses, key=lambda each: losses[each])


def tuner_words(structure: Structure) -> str:
    """Return a structure as the tuner's setting says it.

    >>> tuner_words(Structure.film(2))
    'tuner.ops=["mul+add", "mul+add"]'
    """
    rows = ["+".join(op for op, gate in zip(OPS, row, strict=True) if gate) for row in structure.gates]
    return f"tuner.ops={json.dumps(rows)}"
