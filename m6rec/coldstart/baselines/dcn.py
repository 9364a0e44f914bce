"""DCN: layers that multiply all fields with their own first input, beside a small network. Knows no training."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from m6rec.coldstart.item_net import ItemNet, Own
from m6rec.coldstart.item_tasks import Facts


class DCN(ItemNet):
    """A cross network and a deep one over the same vectors.

    Args:
        facts: of all items.
        num_users: how many there are.
        width: of a field's vector.
        num_layers: of the cross network; the states behind layer ``l`` are of degree ``l + 1``.
        hidden: of the deep network.

    Source: Wang et al., DCN V2 (arXiv 2008.13535), equation 1, in parallel with the deep network (figure 1b).
    """

    def __init__(self, facts: Facts, num_users: int, width: int = 16, num_layers: int = 2, hidden: int = 64) -> None:
        super().__init__(facts, num_users, width)
        size = len(self.fields) * width
        self.crosses = nn.ModuleList(nn.Linear(size, size) for _ in range(num_layers))
        self.deep = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden // 2), nn.ReLU())
        self.out = nn.Linear(size + hidden // 2, 1)

    def predict(
        self, fields: Float[Tensor, "items judgements fields width"], own: Own
    ) -> Float[Tensor, "items judgements"]:
        """Return what is added to the logit of every pair."""
        first = crossed = fields.flatten(-2)
        for layer in self.crosses:
            crossed = first * layer(crossed) + crossed
        logits: Tensor = self.out(torch.cat([crossed, self.deep(first)], dim=-1))[..., 0]
        return logits
