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
# Events that pull a user's level to the prior's, as in the closed form.
LEVEL_PULL = 5.0


@dataclass(frozen=True)
class TwoStageConfig:
    """Settings of two-stage meta-learning; all change results."""

    part: Literal["vector", "adapter"] = "vector"
    """What a user owns: a level and a taste along each shared direction, or a level and a bottleneck of `rank` over
    them."""
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

    def __post_init__(self) -> None:
        for name in ("rank", "hidden", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")


def descend(
    objective: Objective,
    start: Float[Tensor, "users numbers"],
    rate: Float[Tensor, "*users numbers"],
    steps: int,
    second_order: bool = False,
) -> Float[Tensor, "users numbers"]:
    """Return each user's numbers after some steps of gradient descent; users do not touch one another.

    The outer gradient reaches ``start`` and ``rate`` in either case; with ``second_order`` it also goes through the
    gradients of the inner steps. Works under ``torch.no_grad`` too, and then keeps no graph.

    Args:
        objective: numbers of all users -> ``[users]``, the loss of each.
        start: where each user begins.
        rate: step size of each number, of all users or of each.
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

    def pull(self, directions: Float[Tensor, " dim"]) -> Float[Tensor, " numbers"]:
        """Return the weight of the prior of each number, in events."""
        return torch.cat([directions.new_full((1,), LEVEL_PULL), directions])

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

    def pull(self, directions: Float[Tensor, " dim"]) -> Float[Tensor, " numbers"]:
        """Return the weight of the prior of each number, in events."""
        inner = directions.mean().expand(self.size - 1)
        return torch.cat([directions.new_full((1,), LEVEL_PULL), inner])

    def __call__(
        self, numbers: Float[Tensor, "users numbers"], directions: Float[Tensor, "users events dim"]
    ) -> Float[Tensor, "users events"]:
        """Return what each user adds to each item."""
        level, way_out, way_in = numbers.split([1, self.rank, self.dim * self.rank], dim=1)
        inner = torch.einsum("udr,ued->uer", way_in.view(-1, self.dim, self.rank), directions)
        return level + torch.einsum("ur,uer->ue", way_out, torch.tanh(inner))


class TwoStage(nn.Module):
    """Predicts what a user thinks of items from few judged ones: the fixed part, and the start of the adaptive one.

    Untrained it is a closed form: the item's level, the user's shrunk level, and nearly the ridge of a user's events on
    the directions of taste; training starts from there.

    Args:
        config: settings.
        table_width: numbers of one item's features.
        profile_width: numbers of one user's profile.
        pull: ``[dim]`` weight of the prior along each direction, in events.
    """

    def __init__(
        self, config: TwoStageConfig, table_width: int, profile_width: int, pull: Float[Tensor, " dim"]
    ) -> None:
        super().__init__()
        dim = len(pull)
        self.config = config
        self.part = VectorPart(dim) if config.part == "vector" else AdapterPart(dim, config.rank)
        self.adapter = nn.Linear(table_width + 2, config.hidden)
        self.quality, self.directions = nn.Linear(config.hidden, 1), nn.Linear(table_width, dim, bias=False)
        self.profile = nn.Parameter(torch.zeros(self.part.size, profile_width))
        for weight in (self.quality.weight, self.quality.bias, self.directions.weight):
            nn.init.zeros_(weight)
        self.start = nn.Parameter(self.part.start())
        # A step of one half over the curvature solves a squared loss at once, where directions do not go together.
        self.log_rate = nn.Parameter(torch.full((self.part.size,), math.log(0.4)))
        self.log_pull = nn.Parameter(self.part.pull(pull).log())

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
        return events.base + worth, events.taste + self.directions(features)

    def prior(self, profiles: Float[Tensor, "users columns"]) -> Float[Tensor, "users numbers"]:
        """Return where each user starts."""
        return self.start + profiles @ self.profile.T

    def adapt(
        self, table: ItemTable, support: Events, prior: Float[Tensor, "users numbers"]
    ) -> Float[Tensor, "users numbers"]:
        """Return each user's numbers after the inner loop over her known events; without any they are the prior's.

        The objective is the squared error of her events plus the prior's, ``pull`` events strong; a step is divided by
        the number of both, so that it is as long for ten thousand events as for one.
        """
        worth, directions = self.fixed(table, support)
        pull, rate = self.log_pull.exp(), self.log_rate.exp()

        def objective(numbers: Tensor) -> Tensor:
            missed = (support.values - worth - self.part(numbers, directions)) * support.keep
            total: Tensor = missed.square().sum(1) + (pull * (numbers - prior) ** 2).sum(1)
            return total

        step = rate / (support.num_kept[:, None] + pull)
        return descend(objective, prior, step, self.config.steps, self.config.second_order)

    def predict(
        self, table: ItemTable, query: Events, numbers: Float[Tensor, "users numbers"]
    ) -> Float[Tensor, "users events"]:
        """Return what users think of items, in standard units."""
        worth, directions = self.fixed(table, query)
        return worth + self.part(numbers, directions)

    def forward(self, table: ItemTable, batch: ColdBatch) -> Float[Tensor, "users events"]:
        """Return what users think of what is asked, adapted to what is known of them."""
        return self.predict(table, batch.query, self.adapt(table, batch.support, self.prior(batch.profiles)))
