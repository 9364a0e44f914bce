"""LoRA and its variants rsLoRA and DoRA, through PEFT."""

from dataclasses import dataclass
from typing import Any

from m6rec.backbones.anatomy import Anatomy
from m6rec.tuners.adapter import PeftTuner, target_names


@dataclass(frozen=True)
class LoraConfig:
    """Settings of LoRA."""

    rank: int = 8
    """Rank of the change of each matrix (changes results; more parameters, little more time)."""
    alpha: float = 16.0
    """The change is scaled by alpha / rank (changes results)."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) instead, so that a higher rank does not learn more slowly (changes results)."""
    decomposed: bool = False
    """DoRA: the change turns each column of a matrix, and a trained length scales it (changes results; slower)."""
    dropout: float = 0.0
    """Dropout before the change, in training only (changes results)."""
    targets: tuple[str, ...] = ()
    """Names of the matrices to change; none = queries and values, as in the paper; ``all-linear`` = every one."""
    seed: int = 0
    """Seed of the random start."""

    def peft(self, anatomy: Anatomy) -> Any:
        """Return PEFT's own config."""
        import peft

        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rank_stabilized,
            use_dora=self.decomposed,
            target_modules=target_names(self.targets),
            fan_in_fan_out=anatomy.conv1d,
        )


class LoraTuner(PeftTuner):
    """Low-rank changes of frozen matrices; starts as the frozen model.

    Source: Hu et al., LoRA (arXiv 2106.09685), section 4.1; Kalajdzievski, rsLoRA (arXiv 2312.03732); Liu et al., DoRA
    (arXiv 2402.09353).
    """

    Config = LoraConfig
    method = "lora"
