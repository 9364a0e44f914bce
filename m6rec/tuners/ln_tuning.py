"""Tuning the norms alone, through PEFT."""

from dataclasses import dataclass
from typing import Any

from m6rec.backbones.anatomy import Anatomy
from m6rec.errors import TunerError
from m6rec.tuners.adapter import PeftTuner


@dataclass(frozen=True)
class LNTuningConfig:
    """Nothing to set: every norm of the family learns."""

    def peft(self, anatomy: Anatomy) -> Any:
        """Return PEFT's own config.

        Raises:
            TunerError: the anatomy names no norm.
        """
        import peft

        if not anatomy.norm_names:
            raise TunerError(
                "got a backbone whose anatomy names no norms, expected at least one to tune; add norm_names to its "
                "anatomy, or use lora"
            )
        return peft.LNTuningConfig(target_modules=list(anatomy.norm_names))


class LNTuningTuner(PeftTuner):
    """The norms' scales and shifts learn, and nothing else; starts as the frozen model.

    Source: Zhao et al., Tuning LayerNorm in Attention (arXiv 2312.11420).
    Differs: all norms of a family, also where PEFT's own choice knows the family not at all (BERT) or in part (Qwen3).
    """

    Config = LNTuningConfig
    method = "ln-tuning"
