"""What a cold-user run knows before a user's first event: items by text, attributes and means, users by profile.

Read once through the frozen backbone and kept. Knows no predictor and no user's events.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.coldstart.events import ItemTable, Rates
from m6rec.coldstart.factors import Factors
from m6rec.coldstart.traits import Attributes, LayerReader
from m6rec.nn.towers import Whitening
from m6rec.tasks.heads import read_tensors
from m6rec.text.tokenize import TextTokenizer


class Known(nn.Module):
    """Items and users as numbers; all of it is buffers, so that a run carries it.

    Args:
        num_items: of the catalogue.
        hidden: width of the backbone.
        layers: upper layers that are read.
        width: whitened numbers of each.
        items: the items' attribute columns.
        users: the users' attribute columns.
        dim: directions of taste.
    """

    texts: Tensor
    attributes: Tensor
    base: Tensor
    counts: Tensor
    taste: Tensor
    text_taste: Tensor
    units: Tensor

    def __init__(
        self, num_items: int, hidden: int, layers: int, width: int, items: Attributes, users: Attributes, dim: int
    ) -> None:
        super().__init__()
        self.items, self.users, self.reader = items, users, LayerReader(layers)
        self.whitening = nn.ModuleList(Whitening(hidden, min(width, hidden)) for _ in range(layers))
        self.register_buffer("texts", torch.zeros(num_items, layers, min(width, hidden)))
        self.register_buffer("attributes", torch.zeros(num_items, len(items)))
        self.register_buffer("base", torch.zeros(num_items))
        self.register_buffer("counts", torch.zeros(num_items))
        self.register_buffer("taste", torch.zeros(num_items, dim))
        self.register_buffer("text_taste", torch.zeros(self.table.width, dim))
        self.register_buffer("units", torch.tensor([0.0, 1.0], dtype=torch.float64))

    @property
    def table(self) -> ItemTable:
        """What predictors read of the catalogue's items."""
        return ItemTable(self.texts, self.attributes)

    @property
    def names(self) -> dict[str, Any]:
        """What of it is no tensor."""
        return {"items": self.items.names, "users": self.users.names}

    def read(self, states: Float[Tensor, "items layers hidden"], records: Sequence[Mapping[str, Any]]) -> None:
        """Take in the catalogue's states and records."""
        for layer, whitening in enumerate(self.whitening):
            assert isinstance(whitening, Whitening)
            whitening.fit(states[:, layer])
        self.texts.copy_(self._whitened(states))
        self.attributes.copy_(self.items(records))

    def judge(self, rates: Rates, factors: Factors) -> None:
        """Take in what users that are learnt from thought of the catalogue."""
        self.base.copy_(torch.from_numpy(rates.items))
        self.counts.copy_(torch.from_numpy(rates.counts).log1p())
        self.taste.copy_(torch.from_numpy(factors.items()))
        self.text_taste.copy_(torch.from_numpy(factors.strangers()))
        self.units.copy_(torch.tensor([rates.mean, rates.scale]))

    def strangers(
        self, backbone: Backbone, words: TextTokenizer, texts: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> ItemTable:
        """Return items that the catalogue does not hold, by their words and fields alone."""
        device = self.texts.device
        states = self.reader.read(backbone, words.texts(texts)).to(device)
        return ItemTable(self._whitened(states), self.items(records).to(device))

    def _whitened(self, states: Tensor) -> Tensor:
        return torch.stack([fitted(states[:, layer]) for layer, fitted in enumerate(self.whitening)], dim=1)


def catalogue_states(
    backbone: Backbone, words: TextTokenizer, texts: Sequence[str], layers: int, folder: Path
) -> Float[Tensor, "items layers hidden"]:
    """Return the states of a catalogue's texts, read once and kept in ``folder`` under what they depend on."""
    depends = {"backbone": backbone.fingerprint, "layers": layers, "texts": list(texts)}
    name = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:24]
    path = folder / f"states-{name}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        states = LayerReader(layers).read(backbone, words.texts(texts)).half()
        half = path.with_suffix(".part")
        save_file({"states": states}, half)
        half.replace(path)
    return read_tensors(path)["states"].float()
