"""The bottleneck, a small trained detour, and the ways to put one into a frozen layer: behind a module, beside a span.

This module knows no method: which sites get one, with which activation and gate, is a tuner's.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.backbones.sites import Span
from m6rec.errors import ConfigError, TunerError
from m6rec.tuners.inserted import InsertedTuner, Wrapper

Activation = Callable[[Tensor], Tensor]


class Bottleneck(nn.Module):
    """States to states through a few units: ``gate * (activation(z W1 + b1) W2 + b2)``, zero at the start.

    ``rise`` and ``fall`` are its two halves, for a family whose feed-forward lets nothing but hidden units through.

    Args:
        hidden: width of the states.
        width: number of units.
        activation: of the units.
        gated: whether a trained scalar, 1 at the start, multiplies the outcome.
    """

    def __init__(self, hidden: int, width: int, activation: Activation, gated: bool = False) -> None:
        super().__init__()
        self.width, self.activation = width, activation
        self.down, self.up = nn.Linear(hidden, width), nn.Linear(width, hidden)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.gate = nn.Parameter(torch.ones(())) if gated else None

    def rise(self, states: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape width"]:
        """Return the units, in the dtype of the states (a backbone may be stored in half of what is trained)."""
        return self.activation(self.down(states.to(self.down.weight.dtype))).to(states.dtype)

    def fall(self, units: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape hidden"]:
        """Return what is added to the states."""
        added = self.up(units.to(self.up.weight.dtype))
        return (added if self.gate is None else self.gate * added).to(units.dtype)

    def forward(self, states: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape hidden"]:
        """Return what is added to the states."""
        return self.fall(self.rise(states))


class Serial(Wrapper):
    """A module followed by a bottleneck with a skip around it: ``z + bottleneck(z)`` of what the module gives.

    Args:
        base_layer: the frozen module.
        bottleneck: what follows.
    """

    def __init__(self, base_layer: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__(base_layer)
        self.bottleneck = bottleneck

    def forward(self, states: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape hidden"]:
        """Apply both, one after the other."""
        states = self.base_layer(states)
        return states + self.bottleneck(states)


class Parallel(Wrapper):
    """A module and a bottleneck that read the same states; what they give is added.

    Args:
        base_layer: the frozen module, from states to states.
        bottleneck: what runs beside.
    """

    def __init__(self, base_layer: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__(base_layer)
        self.bottleneck = bottleneck

    def forward(self, states: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape hidden"]:
        """Apply both and add."""
        return self.base_layer(states) + self.bottleneck(states)


class Boarding(Wrapper):
    """The first module of a span, whose hidden units take the bottleneck's along at their end.

    Args:
        base_layer: the frozen module, from states to hidden units.
        bottleneck: whose units ride along.
    """

    def __init__(self, base_layer: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__(base_layer)
        self.bottleneck = bottleneck

    def forward(self, states: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape units"]:
        """Return the hidden units, then the bottleneck's."""
        units = self.base_layer(states)
        return torch.cat([units, self.bottleneck.rise(states).to(units.dtype)], dim=-1)


class Landing(Wrapper):
    """The last module of a span, which takes the bottleneck's units off and adds what they say.

    Args:
        base_layer: the frozen module, from hidden units to states.
        bottleneck: whose units these are.
    """

    def __init__(self, base_layer: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__(base_layer)
        self.bottleneck = bottleneck

    def forward(self, units: Float[Tensor, "*shape units"]) -> Float[Tensor, "*shape hidden"]:
        """Return the states."""
        own, guests = units.tensor_split([units.shape[-1] - self.bottleneck.width], dim=-1)
        return self.base_layer(own) + self.bottleneck.fall(guests)


def put_bottleneck(tuner: InsertedTuner, backbone: Backbone, place: str | Span, bottleneck: Bottleneck) -> None:
    """Put a bottleneck behind the module at a path, with a skip, or beside a span.

    Nothing is kept from one half to the other, so that the same layer may run twice before anything is read (shared
    layers, pieces of a batch): where a span is two modules, the units go through it in the tensor itself.
    """
    if isinstance(place, str):
        tuner.put(backbone, place, lambda base_layer: Serial(base_layer, bottleneck))
    elif place.first == place.last:
        tuner.put(backbone, place.first, lambda base_layer: Parallel(base_layer, bottleneck))
    else:
        tuner.put(backbone, place.first, lambda base_layer: Boarding(base_layer, bottleneck))
        tuner.put(backbone, place.last, lambda base_layer: Landing(base_layer, bottleneck))


def check_width(bottleneck: int, budget: float | None) -> None:
    """Refuse settings of a width that no backbone could have.

    Raises:
        ConfigError: fewer than one unit, or a budget that is no share.
    """
    if bottleneck < 1:
        raise ConfigError(f"bottleneck: got {bottleneck}, expected 1 or more")
    if budget is not None and not 0 < budget < 1:
        raise ConfigError(f"budget: got {budget:g}, expected a share of the parameters, such as 1% or 0.01")


def widest(backbone: Backbone, budget: float, num_sites: int, gated: bool = False, others: int = 0) -> int:
    """Return the widest bottleneck that a budget allows.

    Args:
        backbone: bare, whose parameters (embeddings included) the budget is a share of.
        budget: largest trained share, e.g. 0.01.
        num_sites: how many bottlenecks of that width.
        gated: whether each has a gate.
        others: trained parameters beside them (prompts; the control tokens' rows are counted here).

    Raises:
        TunerError: not even one unit fits.
    """
    total, hidden = sum(parameter.numel() for parameter in backbone.parameters()), backbone.hidden_size
    fixed = others + backbone.control.numel() + num_sites * (hidden + gated)
    each = num_sites * (2 * hidden + 1)
    width = int((budget * total - fixed) // each)
    if width < 1:
        least = 100 * (fixed + each) / total
        raise TunerError(
            f"got a budget of {100 * budget:g} % of {backbone.name}, expected at least {least:.3g} % for bottlenecks "
            "of one unit; raise it, or set fewer virtual tokens"
        )
    return width
