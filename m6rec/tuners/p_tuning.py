"""P-tuning, through PEFT."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from m6rec.backbones.anatomy import Anatomy
from m6rec.backbones.base import Backbone
from m6rec.tuners.adapter import PeftTuner
from m6rec.tuners.virtual import PromptedBackbone


@dataclass(frozen=True)
class PTuningConfig:
    """Settings of P-tuning."""

    num_virtual_tokens: int = 16
    """How many trained rows stand before the text (changes results; costs as many tokens of every text)."""
    encoder_width: int = 128
    """Width of the network that makes the rows (changes results; nothing after training)."""
    seed: int = 0
    """Seed of the random start."""

    def peft(self, anatomy: Anatomy) -> Any:
        """Return PEFT's own config: a three-layer network, before the source alone."""
        import peft

        return peft.PromptEncoderConfig(
            num_virtual_tokens=self.num_virtual_tokens,
            encoder_reparameterization_type="MLP",
            encoder_hidden_size=self.encoder_width,
            num_transformer_submodules=1,
        )


class PTuningTuner(PeftTuner):
    """Prompt tuning whose rows come out of a small trained network.

    PEFT saves the rows and not the network, so after ``load`` the rows themselves are what is trained further.

    Source: Liu et al., P-tuning (arXiv 2103.10385), section 3.
    Differs: an MLP without the LSTM, PEFT's default.
    """

    Config = PTuningConfig
    method = "p-tuning"

    def _wrap(self, backbone: Backbone) -> Backbone:
        return PromptedBackbone(backbone, self._peft.prompt_encoder["default"], self.config.num_virtual_tokens)

    def _before_load(self) -> None:
        self._peft.prompt_encoder["default"].mlp_head = nn.Identity()
