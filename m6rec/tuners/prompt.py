"""Prompt tuning, through PEFT."""

from dataclasses import dataclass, field
from typing import Any

import torch

from m6rec.backbones.anatomy import Anatomy
from m6rec.backbones.base import Backbone
from m6rec.tuners.adapter import PeftTuner
from m6rec.tuners.start import StartConfig, starting_rows
from m6rec.tuners.virtual import PromptedBackbone


@dataclass(frozen=True)
class PromptConfig:
    """Settings of prompt tuning."""

    num_virtual_tokens: int = 16
    """How many trained rows stand before the text (changes results; costs as many tokens of every text)."""
    start: StartConfig = field(default_factory=StartConfig)
    """Where the rows start."""
    seed: int = 0
    """Seed of the words whose rows are the start."""

    def peft(self, anatomy: Anatomy) -> Any:
        """Return PEFT's own config: rows of random words, before the source alone (``start`` puts others there)."""
        import peft

        return peft.PromptTuningConfig(
            num_virtual_tokens=self.num_virtual_tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
            num_transformer_submodules=1,
        )


class PromptTuner(PeftTuner):
    """Trained rows before the text, seen by all of it; the model itself stays frozen.

    Source: Lester et al. (arXiv 2104.08691), section 2; initialised from the vocabulary, as their section 3.2 advises.
    Differs: on T5 the rows stand before the source only, for PEFT's second set before the target is one per decoder
    sequence, and a tree has many.
    """

    Config = PromptConfig
    method = "prompt"

    def _wrap(self, backbone: Backbone) -> Backbone:
        encoder, count = self._peft.prompt_encoder["default"], self.config.num_virtual_tokens
        if self.config.start != StartConfig():
            with torch.no_grad():
                encoder.embedding.weight.copy_(starting_rows(backbone, self.config.start, count))
        return PromptedBackbone(backbone, encoder, count)
