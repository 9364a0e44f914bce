"""Tune nothing: only a task's own heads learn."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from m6rec.backbones.base import Backbone
from m6rec.tuners.files import read_control, save_control
from m6rec.tuners.state import Snapshot, attached, unattached


@dataclass(frozen=True)
class NoTunerConfig:
    """Nothing to set."""


class NoTuner:
    """Train a task's heads only: the backbone stays exactly as it is, so that its outputs can be cached for good.

    The control tokens' rows are frozen too: they are the input of the first layer, and training them would cost a
    backward pass through the whole backbone.

    Args:
        config: nothing to set.
    """

    Config = NoTunerConfig
    method = "none"

    def __init__(self, config: NoTunerConfig | None = None) -> None:
        self.config = config or NoTunerConfig()
        self._before: Snapshot | None = None

    def attach(self, backbone: Backbone) -> Backbone:
        """Freeze the backbone and return it."""
        unattached(self._before)
        self._before = Snapshot.take(backbone)
        return backbone

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters: none."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the control tokens' rows and the name of the base model."""
        save_control(attached(self._before).backbone, folder, self.method, self.config)

    def load(self, folder: Path) -> None:
        """Read the control tokens' rows.

        Raises:
            TunerError: they are another base model's, or damaged.
        """
        backbone = attached(self._before).backbone
        with torch.no_grad():
            backbone.control.copy_(read_control(backbone, folder, self.method))

    def detach(self) -> Backbone:
        """Give the backbone back as it was."""
        before, self._before = attached(self._before), None
        return before.restore()
