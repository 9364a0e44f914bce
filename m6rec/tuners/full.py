"""Full fine-tuning: every weight of the backbone learns."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners.files import read_control, read_tensors, save_control
from m6rec.tuners.state import Snapshot, attached, trained_parameters, unattached

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class FullTunerConfig:
    """Nothing to set."""


class FullTuner:
    """Train every weight of the backbone (full fine-tuning).

    A copy of the pretrained weights is kept in main memory until ``detach``.

    Args:
        config: nothing to set.
    """

    Config = FullTunerConfig
    method = "full"

    def __init__(self, config: FullTunerConfig | None = None) -> None:
        self.config = config or FullTunerConfig()
        self._before: Snapshot | None = None
        self._weights: dict[str, Tensor] = {}

    def attach(self, backbone: Backbone) -> Backbone:
        """Make every weight trainable and return the backbone."""
        unattached(self._before)
        self._before = Snapshot.take(backbone)
        self._weights = {name: weight.detach().cpu().clone() for name, weight in backbone.model.named_parameters()}
        return backbone.requires_grad_(True)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter of the backbone."""
        return trained_parameters(attached(self._before).backbone)

    def save(self, folder: Path) -> None:
        """Write all weights (``model.safetensors``) and the control tokens' rows."""
        backbone = attached(self._before).backbone
        save_control(backbone, folder, self.method, self.config)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in backbone.model.named_parameters()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        """Read all weights and the control tokens' rows.

        Raises:
            TunerError: they are of another shape or base model, or damaged.
        """
        backbone = attached(self._before).backbone
        control, (weights, _) = read_control(backbone, folder, self.method), read_tensors(folder / WEIGHTS_FILE)
        own = dict(backbone.model.named_parameters())
        if {name: weight.shape for name, weight in weights.items()} != {name: own[name].shape for name in own}:
            raise TunerError(f"got weights of another shape in {folder}; load the backbone that they were trained from")
        _write(own, weights)
        _write({"control": backbone.control}, {"control": control})

    def detach(self) -> Backbone:
        """Give the backbone back with its pretrained weights."""
        before, self._before = attached(self._before), None
        _write(dict(before.backbone.model.named_parameters()), self._weights)
        self._weights = {}
        return before.restore()


@torch.no_grad()
def _write(targets: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(values[name])
