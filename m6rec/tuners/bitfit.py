"""Tuning biases alone, through PEFT."""

from dataclasses import dataclass
from typing import Any

from m6rec.backbones.anatomy import Anatomy
from m6rec.errors import TunerError
from m6rec.tuners.adapter import PeftTuner, target_names


@dataclass(frozen=True)
class BitFitConfig:
    """Settings of bias tuning."""

    targets: tuple[str, ...] = ("all-linear",)
    """Names of the matrices whose bias learns; ``all-linear`` = every one, as in BitFit; none = the values' alone, as
    in BEFT (changes results)."""

    def peft(self, anatomy: Anatomy) -> Any:
        """Return PEFT's own config.

        Raises:
            TunerError: the family is GPT-2.
        """
        import peft

        if anatomy.conv1d:
            raise TunerError(
                "got bias tuning for GPT-2, expected a family of plain linear layers: PEFT's biases do not fit its "
                "transposed ones; use ln-tuning or lora"
            )
        return peft.BeftConfig(target_modules=target_names(self.targets))


class BitFitTuner(PeftTuner):
    """A trained bias behind every matrix, whether it had one or not; starts as the frozen model.

    Source: Ben Zaken et al., BitFit (arXiv 2106.10199); Huang et al., BEFT (arXiv 2509.15974).
    Differs: the norms' shifts stay frozen (that is ln-tuning), and a bias is added where a family has none.
    """

    Config = BitFitConfig
    method = "bitfit"
