"""Prefix tuning, through PEFT."""

from dataclasses import dataclass
from typing import Any

import torch

from m6rec.backbones.anatomy import Anatomy
from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners.adapter import PeftTuner
from m6rec.tuners.virtual import PrefixedBackbone


@dataclass(frozen=True)
class PrefixConfig:
    """Settings of prefix tuning."""

    num_virtual_tokens: int = 16
    """How many trained keys and values stand before every layer's own (changes results)."""
    spread: float = 0.02
    """Standard deviation of the start (changes results)."""
    seed: int = 0
    """Seed of the random start."""

    def peft(self, anatomy: Anatomy) -> Any:
        """Return PEFT's own config.

        Raises:
            TunerError: the family is T5.
        """
        import peft

        if anatomy.family == "seq2seq":
            raise TunerError(
                "got prefix tuning for an encoder-decoder, expected an encoder or a decoder: PEFT's prefix reaches "
                "only the decoder, and a user text runs the encoder alone; use prompt, p-tuning, lora or ia3"
            )
        return peft.PrefixTuningConfig(num_virtual_tokens=self.num_virtual_tokens)


class PrefixTuner(PeftTuner):
    """Trained keys and values before every layer's own; the model itself stays frozen.

    Source: Li and Liang (arXiv 2101.00190), section 4.
    Differs: without the reparametrisation network, as is PEFT's default; and it starts near zero, where PEFT starts
    with a standard deviation of 1: on all-MiniLM-L6-v2 that keeps the sentence vectors at cosine .86 to the frozen
    model's instead of .60. Not at zero, for equal prefixes would stay equal.
    """

    Config = PrefixConfig
    method = "prefix"

    def _wrap(self, backbone: Backbone) -> Backbone:
        settings = self._peft.peft_config["default"]
        encoder = self._peft.prompt_encoder["default"]
        with torch.no_grad():
            encoder.embedding.weight.mul_(self.config.spread)
        return PrefixedBackbone(backbone, encoder, settings.num_virtual_tokens, settings.num_attention_heads)
