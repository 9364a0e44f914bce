"""IA3, through PEFT."""

from dataclasses import dataclass
from typing import Any

from m6rec.backbones.anatomy import Anatomy
from m6rec.tuners.adapter import PeftTuner, target_names


@dataclass(frozen=True)
class IA3Config:
    """Settings of IA3."""

    targets: tuple[str, ...] = ()
    """Names of the matrices to rescale at their output; none = keys, values and the feed-forward's last, as in PEFT."""
    feedforward_targets: tuple[str, ...] = ()
    """Those of ``targets`` to rescale at their input instead; read only where ``targets`` is set."""

    def peft(self, anatomy: Anatomy) -> Any:
        """Return PEFT's own config."""
        import peft

        return peft.IA3Config(
            target_modules=target_names(self.targets),
            feedforward_modules=list(self.feedforward_targets) if self.targets else None,
            fan_in_fan_out=anatomy.conv1d,
        )


class IA3Tuner(PeftTuner):
    """One trained scale for each key, value and feed-forward channel; starts as the frozen model.

    Source: Liu et al., T-Few (arXiv 2205.05638), section 3.3.
    """

    Config = IA3Config
    method = "ia3"
