"""DeepFM: all pairs of fields multiplied, beside a small network over all fields. Knows no training."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from m6rec.coldstart.item_net import ItemNet, Own
from m6rec.coldstart.item_tasks import Facts


class DeepFM(ItemNet):
    """A factorisation machine and a network over the same vectors.

    Args:
        facts: of all items.
        num_users: how many there are.
        width: of a field's vector.
        hidden: of the network's layers.
        with_closed_form: whether the logit begins with what the closed form expects.

    Source: Guo et al., DeepFM (arXiv 1703.04247), equations 1 to 4.
    Differs: the linear term is a map of the same vectors instead of weights of its own.
    """

    def __init__(
        self, facts: Facts, num_users: int, width: int = 16, hidden: int = 64, with_closed_form: bool = False
    ) -> None:
        super().__init__(facts, num_users, width, with_closed_form)
        size = len(self.fields) * width
        self.linear = nn.Linear(size, 1, bias=False)
        self.deep = nn.Sequential(
            nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1)
        )

    def predict(
        self, fields: Float[Tensor, "items judgements fields width"], own: Own
    ) -> Float[Tensor, "items judgements"]:
        """Return what is added to the logit of every pair."""
        flat = fields.flatten(-2)
        pairs = (fields.sum(-2).square() - fields.square().sum(-2)).sum(-1) / 2
        return torch.as_tensor(self.linear(flat) + self.deep(flat))[..., 0] + pairs
