"""Two-stage meta-learning: what all users share is learnt offline, a few numbers a user are fitted to her events.

Source: Learning to Recommend via Meta Parameter Partition (Zhao et al., 1912.04108): fixed parameters, learnt by
    offline meta-learning, and adaptive ones, learnt online for each user.
Differs: the paper's split of the network, its steps and its data are not public. Here the fixed part is a frozen
    backbone under a small shared adapter, the adaptive part a vector or a tiny bottleneck a user, and the inner loop
    descends to the most probable adaptive part under a learnt Gaussian prior: a user without events stays at the
    prior, one with few events near it.

It knows no user by name, no file and no loop. The online stage is :mod:`m6rec.coldstart.online`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.coldstart.events import ColdBatch, Events, ItemTable

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TwoStageConfig:
    """Settings of two-stage meta-learning; all change results."""

    part: Literal["vector", "adapter"] = "vector"
    """What a user owns: a level and one taste for each of the `dim` shared directions, or a level and a bottleneck of
    `rank` over them."""
    dim: int = 16
    """Shared directions of taste."""
    rank: int = 2
    """Width of a user's bottleneck."""
    hidden: int = 64
    """Width of the shared adapter's hidden layer."""
    steps: int = 5
    """Inner steps from the prior."""
    second_order: bool = True
    """Whether the outer gradient goes through the inner steps' own gradients (MAML) or treats them as given
    (first-order MAML)."""
    dropout: float = 0.2
    """On the shared adapter's hidden layer."""
    id_decay: float = 0.02
    """Weight of the squared residuals of items in the loss; text alone has to do for an item that nobody judged."""

    def __post_init__(self) -> None:
        for name in ("dim", "rank", "hidden", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")


def descend(
    objective: Objective,
    start: Float[Tensor, "users numbers"],
    rate: Float[Tensor, "*numbers"],
    steps: int,
    second_order: bool = False,
) -> Float[Tensor, "users numbers"]:
    """Return each user's numbers after some steps of gradient descent; users do not touch one another.

    The outer gradient reaches ``start`` and ``rate`` in either case; with ``second_order`` it also goes through the
    gradients of the inner steps. Works under ``torch.no_grad`` too, and then keeps no graph.

    Args:
        objective: numbers of all users -> ``[users]``, the loss of each.
        start: where each user begins.
        rate: step size, one for all or one a number.
        steps: how many.
        second_order: see above.

    Source: MAML (Finn et al., 1703.03400), equation 1, and section 5.2 for first order; learnt rates: Meta-SGD (Li et
        al., 1707.09835).
    """
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        numbers = start if outer and start.requires_grad else start.detach().requires_grad_()
        for _ in range(steps):
            if not (outer and second_order):
                held = numbers.detach().requires_grad_()
                (slope,) = torch.autograd.grad(objective(held).sum(), held)
            else:
                (slope,) = torch.autograd.grad(objective(numbers).sum(), numbers, create_graph=True)
            numbers = numbers - rate * slope
    return numbers if outer else numbers.detach()


class VectorPart:
    """A user's level, and how much she likes each shared direction.

    Args:
        dim: shared directions.
    """

    def __init__(self, dim: int) -> None:
        self.size = 1 + dim

    def start(self) -> Float[Tensor, " numbers"]:
        """Return the prior's mean: nothing is added to what is known of the item."""
        return torch.zeros(self.size)

    def __call__(
        self, numbers: Float[Tensor, "users numbers"], directions: Float[Tensor, "users events dim"]
    ) -> Float[Tensor, "users events"]:
        """Return what each user adds to each item."""
        return numbers[:, :1] + torch.einsum("ud,ued->ue", numbers[:, 1:], directions)


class AdapterPart:
    """A user's level, and a bottleneck of her own over the shared directions.

    Starts at nothing added: the way out of the bottleneck is zero there, the way in is not (with both at zero no
    gradient would ever reach either).

    Args:
        dim: shared directions.
        rank: width.
    """

    def __init__(self, dim: int, rank: int) -> None:
        self.dim, self.rank, self.size = dim, rank, 1 + rank + dim * rank

    def start(self) -> Float[Tensor, " numbers"]:
        """Return the prior's mean."""
        way_in = torch.randn(self.dim * self.rank) / math.sqrt(self.dim)
        return torch.cat([torch.zeros(1 + self.rank), way_in])

    def __call__(
        self, numbers: Float[Tensor, "users numbers"], directions: Float[Tensor, "users events dim"]
    ) -> Float[Tensor, "users events"]:
        """Return what each user adds to each item."""
        level, way_out, way_in = numbers.split([1, self.rank, self.dim * self.rank], dim=1)
        inner = torch.einsum("udr,ued->uer", way_in.view(-1, self.dim, self.rank), directions)
        return level + torch.einsum("ur,uer->ue", way_out, torch.tanh(inner))


class TwoStage(nn.Module):
    """Predicts what a user thinks of items from few judged ones: the fixed part, and the start of the adaptive one.

    Untrained it is a closed form: the item's mean, the user's shrunk level, and a ridge on random directions of the
    text, so that training starts from there.

    Args:
        config: settings.
        table_width: numbers of one item's features.
        profile_width: numbers of one user's profile.
        num_items: items with a residual of their own; others go by their text.
    """

    def __init__(self, config: TwoStageConfig, table_width: int, profile_width: int, num_items: int) -> None:
        super().__init__()
        self.config, self.num_items = config, num_items
        self.part = VectorPart(config.dim) if config.part == "vector" else AdapterPart(config.dim, config.rank)
        self.adapter = nn.Linear(table_width + 2, config.hidden)
        self.quality, self.directions = nn.Linear(config.hidden, 1), nn.Linear(table_width, config.dim, bias=False)
        self.residuals = nn.Embedding(num_items, config.dim)
        self.profile = nn.Linear(profile_width, self.part.size, bias=False)
        # About one unit of variance over all directions together: the inner steps are stable at every support size.
        nn.init.normal_(self.directions.weight, std=0.5 / math.sqrt(table_width * config.dim))
        for weight in (self.quality.weight, self.quality.bias, self.residuals.weight, self.profile.weight):
            nn.init.zeros_(weight)
        self.start = nn.Parameter(self.part.start())
        # A gradient step of 1/2 solves a squared loss of curvature 2 at once.
        self.log_rate = nn.Parameter(torch.full((self.part.size,), math.log(0.5)))
        self.log_pull = nn.Parameter(torch.full((self.part.size,), math.log(5.0)))

    @property
    def user_numbers(self) -> int:
        """Numbers that one user owns."""
        return self.part.size

    def fixed(
        self, table: ItemTable, events: Events
    ) -> tuple[Float[Tensor, "users events"], Float[Tensor, "users events dim"]]:
        """Return what events' items are worth to anybody, and their shared directions."""
        features = table.features(events.places)
        inner = F.gelu(self.adapter(torch.cat([features, events.means], dim=-1)))
        worth = self.quality(F.dropout(inner, self.config.dropout, self.training))[..., 0]
        known = events.places < self.num_items
        residuals = self.residuals(events.places.where(known, 0)) * known[..., None]
        return events.base + worth, self.directions(features) + residuals

    def prior(self, profiles: Float[Tensor, "users columns"]) -> Float[Tensor, "users numbers"]:
        """Return where each user starts."""
        return self.start + self.profile(profiles)

    def adapt(
        self, table: ItemTable, support: Events, prior: Float[Tensor, "users numbers"]
    ) -> Float[Tensor, "users numbers"]:
        """Return each user's numbers after the inner loop over her known events; without any they are the prior's.

        The objective is the log posterior over the number of events and of pseudo-events behind the prior, so that a
        step is short for a user of few events and never grows with their number.
        """
        worth, directions = self.fixed(table, support)
        pull, number = self.log_pull.exp(), support.num_kept

        def objective(numbers: Tensor) -> Tensor:
            missed = (support.values - worth - self.part(numbers, directions)) * support.keep
            strayed = (pull * (numbers - prior) ** 2).sum(1)
            total: Tensor = (missed.square().sum(1) + strayed) / (number + pull[0])
            return total

        config = self.config
        return descend(objective, prior, self.log_rate.exp(), config.steps, config.second_order)

    def predict(
        self, table: ItemTable, query: Events, numbers: Float[Tensor, "users numbers"]
    ) -> Float[Tensor, "users events"]:
        """Return what users think of items, in standard units."""
        worth, directions = self.fixed(table, query)
        return worth + self.part(numbers, directions)

    def forward(self, table: ItemTable, batch: ColdBatch) -> Float[Tensor, "users events"]:
        """Return what users think of what is asked, adapted to what is known of them."""
        return self.predict(table, batch.query, self.adapt(table, batch.support, self.prior(batch.profiles)))

    def penalty(self, batch: ColdBatch) -> Tensor:
        """Return what keeps the residuals of the asked items small."""
        residuals = self.residuals(batch.query.places.clamp(max=self.num_items - 1)).square().sum(-1)
        return self.config.id_decay * residuals[batch.query.keep].mean()
