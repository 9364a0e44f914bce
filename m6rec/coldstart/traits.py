"""What is known of items and users before anybody judged: attributes as columns, texts as a frozen backbone's states.

Knows no user's events and no rating.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.nn import pooling
from m6rec.nn.towers import Whitening
from m6rec.tasks.encoding import SegmentEncoder

# These say which item it is, or say it in free words, which the backbone reads.
_NOT_ATTRIBUTES = ("key", "id", "title", "description")


@dataclass(frozen=True)
class Attributes:
    """The frequent values of a catalogue's (or the users') fields, one column each.

    Args:
        names: ``field=value`` of each column.

    >>> few = Attributes.of([{"category": "Drama|War"}, {"category": "Drama", "year": "1994"}], at_most=2)
    >>> few.names
    ('category=drama', 'category=war')
    >>> few([{"category": "War"}, {"category": "Opera"}]).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], at_most: int) -> "Attributes":
        """Return the ``at_most`` most frequent values."""
        counts = Counter(value for record in records for value in set(_values(record)))
        best = sorted(counts, key=lambda value: (-counts[value], value))
        return cls(tuple(sorted(best[:at_most])))

    def __len__(self) -> int:
        return len(self.names)

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> Float[Tensor, "records columns"]:
        """Return 1 where a record has a column's value; a value that no column stands for is nowhere."""
        places = {name: column for column, name in enumerate(self.names)}
        table = torch.zeros(len(records), len(self.names))
        for row, record in enumerate(records):
            for value in _values(record):
                if (column := places.get(value)) is not None:
                    table[row, column] = 1.0
        return table


def _values(record: Mapping[str, Any]) -> Iterator[str]:
    for name, value in record.items():
        if name in _NOT_ATTRIBUTES or value is None or isinstance(value, float):
            continue
        parts = value if isinstance(value, list | tuple) else str(value).replace("|", ",").split(",")
        yield from (f"{name}={' '.join(str(part).casefold().split())}" for part in parts if str(part).strip())


class LayerReader:
    """Reads texts through a frozen backbone and keeps the mean state of each of its upper layers.

    Args:
        num_layers: how many, counted from the top; the last one is normed.
        max_tokens: longest text; the tail is cut.

    Source: ladder side-tuning (Sung et al., 2206.06522) feeds a small network from a frozen one's states, so that each
        text is read once and no gradient goes through it.
    """

    def __init__(self, num_layers: int = 1, max_tokens: int = 64) -> None:
        self.num_layers, self.encoder = num_layers, SegmentEncoder(max_tokens=max_tokens)

    @torch.no_grad()
    def read(self, backbone: Backbone, texts: Sequence[Sequence[int]]) -> Float[Tensor, "texts layers hidden"]:
        """Return the states of token lists, lower layers first, on the CPU.

        Raises:
            ValueError: more layers than the backbone has.
        """
        if self.num_layers > backbone.num_layers:
            raise ValueError(f"num_layers: got {self.num_layers}, expected at most {backbone.num_layers}")
        training = backbone.training
        backbone.eval()
        device = next(backbone.parameters()).device
        states = torch.zeros(len(texts), self.num_layers, backbone.hidden_size)
        for rows in self.encoder.groups(texts):
            batch = self.encoder.batch(backbone, [texts[row] for row in rows]).to(device)
            states[torch.tensor(rows)] = torch.stack(list(self._walk(backbone, batch)), dim=1).float().cpu()
        backbone.train(training)
        return states

    def _walk(self, backbone: Backbone, batch: Any) -> Iterator[Tensor]:
        whole = backbone.extend(batch)
        mask, hidden = backbone.mask(whole), backbone.embed(whole.ids, whole.positions)
        for index in range(backbone.num_layers):
            hidden = backbone.layer(index, hidden, mask, whole.positions)
            if index == backbone.num_layers - 1:
                hidden = backbone.norm(hidden)
            if index >= backbone.num_layers - self.num_layers:
                own = hidden[:, whole.ids.shape[1] - batch.ids.shape[1] :]
                yield pooling.mean(own.float(), batch.keep)


def whitened(states: Float[Tensor, "texts layers hidden"], width: int) -> list[Whitening]:
    """Return a whitening of each layer's states, fitted on ``states``."""
    fitted = []
    for layer in states.unbind(1):
        fitted.append(Whitening(states.shape[-1], width))
        fitted[-1].fit(layer)
    return fitted
