"""The online stage: users' adaptive parts follow their events as these arrive; the fixed part stays as it is.

Source: 1912.04108 (its online stage; the update rule is not public); Reptile (Nichol et al., 1803.02999) for the prior.
Differs: a user's step shrinks with the number of her events, so that her part is the mean over all of them and not an
    echo of the last; the pull back to the prior is what a taste that is no longer confirmed loses.

It knows no log, no clock and no storage; users are rows of a tensor, thousands at once, and never touch one another.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from m6rec.coldstart.events import Events, ItemTable
from m6rec.coldstart.meta import TwoStage


@dataclass(frozen=True)
class OnlineConfig:
    """Settings of the online stage; all change results."""

    pull: float = 0.02
    """Share of the step by which a part goes back to the prior at every event."""
    refresh: float = 0.1
    """Share of the way that the prior goes to the mean of the parts, each time that it is refreshed."""

    def __post_init__(self) -> None:
        for name in ("pull", "refresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 to 1")


@dataclass(frozen=True)
class UserParts:
    """Adaptive parts of some users.

    Args:
        numbers: ``[users, numbers]``.
        prior: ``[users, numbers]`` where each is pulled back to.
        events: ``[users]`` how many events each has had.
    """

    numbers: Float[Tensor, "users numbers"]
    prior: Float[Tensor, "users numbers"]
    events: Float[Tensor, " users"]


class Online:
    """Adapts users to events that arrive one after another.

    Args:
        model: its fixed part is used as it is.
        table: what is known of items.
        config: settings.
    """

    def __init__(self, model: TwoStage, table: ItemTable, config: OnlineConfig | None = None) -> None:
        self.model, self.table, self.config = model.eval(), table, config or OnlineConfig()

    @torch.no_grad()
    def newcomers(self, profiles: Float[Tensor, "users columns"]) -> UserParts:
        """Return users who have done nothing yet: they are at the prior."""
        prior = self.model.prior(profiles).detach()
        return UserParts(prior.clone(), prior, prior.new_zeros(len(prior)))

    @torch.no_grad()
    def predict(self, parts: UserParts, query: Events) -> Float[Tensor, "users events"]:
        """Return what users think of items, in standard units."""
        return self.model.predict(self.table, query, parts.numbers)

    @torch.no_grad()
    def observe(self, parts: UserParts, arrived: Events) -> UserParts:
        """Return the parts after each user's new events, taken one by one in their order.

        The ``n``-th event moves a number by half its slope over ``n + pull``, ``pull`` being the prior's learnt weight
        in events: for a user's level that is exactly the shrunk mean of what her events leave.
        """
        worth, directions = self.model.fixed(self.table, arrived)
        weight = self.model.log_pull.exp()
        numbers, count = parts.numbers, parts.events
        for column in range(arrived.keep.shape[1]):
            keep = arrived.keep[:, column]
            slope = self._slope(numbers, directions[:, column], arrived.values[:, column] - worth[:, column])
            step = 0.5 / (count[:, None] + 1 + weight)
            moved = numbers - step * slope - step * self.config.pull * (numbers - parts.prior)
            numbers = torch.where(keep[:, None], moved, numbers)
            count = count + keep
        return UserParts(numbers, parts.prior, count)

    def _slope(self, numbers: Tensor, directions: Tensor, values: Tensor) -> Tensor:
        """Return the gradient of each user's squared error on one event."""
        with torch.enable_grad():
            held = numbers.detach().requires_grad_()
            missed = values - self.model.part(held, directions[:, None])[:, 0]
            (slope,) = torch.autograd.grad(missed.square().sum(), held)
        return slope

    @torch.no_grad()
    def refresh(self, parts: UserParts) -> None:
        """Move the prior of users to come some way to the mean of those who are here, each by how sure she is of hers.

        Those who are here keep their parts: nobody's predictions change, and so nobody is forgotten.
        """
        trust = parts.events / (parts.events + self.model.log_pull.exp()[0])
        if trust.sum() > 0:
            strayed = (trust[:, None] * (parts.numbers - parts.prior)).sum(0) / trust.sum()
            self.model.start.add_(self.config.refresh * strayed)
