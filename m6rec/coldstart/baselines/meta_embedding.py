"""MetaEmbedding: a generator gives a new item the row from which one step leads far. Knows no training."""

from collections.abc import Iterator

from jaxtyping import Int
from torch import Tensor, nn

from m6rec.coldstart.baselines.deepfm import DeepFM
from m6rec.coldstart.item_tasks import Facts


class MetaEmbedding(DeepFM):
    """DeepFM whose new items start with a row made from what is known of them.

    To be trained in two stages: DeepFM from rows, then the generator alone, by item tasks with one inner step.

    Args:
        facts: of all items.
        num_users: how many there are.
        width: of a field's vector.

    Source: Pan et al., Warm up cold-start advertisements (arXiv 1904.11547), sections 3.2 and 3.3.
    """

    def __init__(self, facts: Facts, num_users: int, width: int = 16) -> None:
        super().__init__(facts, num_users, width)
        size = len(self.fields.of_item) * width
        self.generator = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width, bias=False))

    def start(self, items: Int[Tensor, " items"]) -> dict[str, Tensor]:
        """Return a made row for each item."""
        row: Tensor = self.generator(self.fields.known(items).flatten(1))
        return {"row": row}

    def learnt(self, items: Int[Tensor, " items"]) -> dict[str, Tensor]:
        """Return the rows of items that are learnt from."""
        return {"row": self.rows(items)}

    def made(self) -> Iterator[nn.Parameter]:
        """Yield what the second stage trains."""
        yield from self.generator.parameters()
