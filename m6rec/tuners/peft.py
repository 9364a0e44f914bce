"""The methods of PEFT, on a backbone that still walks.

This module knows no family: what PEFT must be told about one comes from its anatomy.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from m6rec.backbones.anatomy import Anatomy
from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners.adapter import PeftTuner
from m6rec.tuners.virtual import PrefixedBackbone, PromptedBackbone


@dataclass(frozen=True)
class LoraConfig:
    """Settings of LoRA."""

    rank: int = 8
    """Rank of the change of each matrix (changes results; more parameters, little more time)."""
    alpha: float = 16.0
    """The change is scaled by alpha / rank (changes results)."""
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
            target_modules=_targets(self.targets),
            fan_in_fan_out=anatomy.conv1d,
        )


def _targets(names: tuple[str, ...]) -> str | list[str] | None:
    """Return target names as PEFT takes them: ``None`` = its own choice for the family."""
    return "all-linear" if names == ("all-linear",) else list(names) or None


class LoraTuner(PeftTuner):
    """Low-rank changes of frozen matrices; starts as the frozen model.

    Source: Hu et al., LoRA (arXiv 2106.09685), section 4.1.
    """

    Config = LoraConfig
    method = "lora"


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
            target_modules=_targets(self.targets),
            feedforward_modules=list(self.feedforward_targets) if self.targets else None,
            fan_in_fan_out=anatomy.conv1d,
        )


class IA3Tuner(PeftTuner):
    """One trained scale for each key, value and feed-forward channel; starts as the frozen model.

    Source: Liu et al., T-Few (arXiv 2205.05638), section 3.3.
    """

    Config = IA3Config
    method = "ia3"


@dataclass(frozen=True)
class PromptConfig:
    """Settings of prompt tuning."""

    num_virtual_tokens: int = 16
    """How many trained rows stand before the text (changes results; costs as many tokens of every text)."""
    seed: int = 0
    """Seed of the words whose rows are the start."""

    def peft(self, anatomy: Anatomy) -> Any:
        """Return PEFT's own config: rows of random words, before the source alone."""
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
        return PromptedBackbone(backbone, self._peft.prompt_encoder["default"], self.config.num_virtual_tokens)


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
