"""What a tuner is: something small and trained that turns a frozen backbone into a tuned one.

This module knows no method.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from m6rec.backbones.base import Backbone


@runtime_checkable
class Tuner(Protocol):
    """Attach, train, save, load, detach.

    A tuner is built from its frozen config dataclass (``Config``). After ``attach`` only its own parameters (and the
    control tokens' rows) require gradients; the returned object is still a :class:`Backbone`.
    """

    Config: type
    config: Any

    def attach(self, backbone: Backbone) -> Backbone:
        """Return the tuned backbone; everything that was there is frozen (``full`` excepted)."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name (after ``attach``)."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter into ``folder``, in PEFT's own format where PEFT can read it."""
        ...

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote into the attached backbone.

        Raises:
            TunerError: the adapter is of another shape, method or base model, or its file is damaged.
        """
        ...

    def detach(self) -> Backbone:
        """Give back the backbone exactly as it was before ``attach``."""
        ...
