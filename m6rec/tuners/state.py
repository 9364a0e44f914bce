"""What the tuners share: the backbone as it was, and what is trained.

This module knows no method.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError

# The models that a tuner holds. Some tuners leave no trace in the model itself; a copy of it is nobody's.
_HELD: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Snapshot:
    """A backbone as it was before a tuner came.

    Args:
        backbone: the backbone.
        trained: the parameters that required gradients.
        control: a copy of the control tokens' rows.
    """

    backbone: Backbone
    trained: tuple[nn.Parameter, ...]
    control: Float[Tensor, "4 hidden"]

    @staticmethod
    def take(backbone: Backbone) -> "Snapshot":
        """Remember ``backbone``, freeze all of it, and hold it until ``restore``.

        Raises:
            TunerError: another tuner holds it.
        """
        # Whoever wraps a module of the model, PEFT or we, calls what it wraps the base layer; copies keep that.
        wrapped = any("base_layer" in module._modules for module in backbone.model.modules())
        if wrapped or backbone.model in _HELD or getattr(backbone.model, "peft_config", None):
            raise TunerError(
                "got a backbone that carries an adapter, expected a bare one; detach the other tuner first"
            )
        _ = backbone.fingerprint  # taken now: training may change the weights that it names
        trained = tuple(parameter for parameter in backbone.parameters() if parameter.requires_grad)
        backbone.requires_grad_(False)
        _HELD.add(backbone.model)
        return Snapshot(backbone, trained, backbone.control.detach().clone())

    def restore(self) -> Backbone:
        """Give the backbone back with its control rows and gradient flags as they were, free for another tuner."""
        _HELD.discard(self.backbone.model)
        self.backbone.requires_grad_(False)
        for parameter in self.trained:
            parameter.requires_grad_(True)
        with torch.no_grad():
            self.backbone.control.copy_(self.control)
        return self.backbone


def attached(before: Snapshot | None) -> Snapshot:
    """Return what a tuner remembers of its backbone.

    Raises:
        TunerError: it is not attached.
    """
    if before is None:
        raise TunerError("got a tuner that is not attached, expected attach(backbone) before anything else; call it")
    return before


def unattached(before: Snapshot | None) -> None:
    """Refuse a tuner that is on a backbone already.

    Raises:
        TunerError: it is.
    """
    if before is not None:
        raise TunerError(
            f"got a tuner that is attached to {before.backbone.name}, expected one that is free; detach it first, or "
            "make another one"
        )


def trained_parameters(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name."""
    return {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class TrainedShare:
    """How much of a backbone is trained.

    Args:
        trained: number of trained parameters.
        total: number of all parameters, the tuner's own included.
    """

    trained: int
    total: int

    @property
    def percent(self) -> float:
        """Trained parameters in percent of all."""
        return 100 * self.trained / max(1, self.total)

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.total:,} parameters trained ({self.percent:.2f} %)"


def trained_share(backbone: nn.Module) -> TrainedShare:
    """Count what is trained in a tuned backbone (or in any module)."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in backbone.parameters()]
    return TrainedShare(sum(size for size, on in counts if on), sum(size for size, _ in counts))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from ``seed`` inside, and leave the generator outside as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
