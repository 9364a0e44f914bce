"""IAK: kernels that compress a layer's states and match them to a scene, one a scene, all behind one frozen backbone.

This module knows no rule that tells scenes apart: it is given their names, and each row's number.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.backbones.cache import LayerCache
from m6rec.backbones.scenes import ActiveBackbone, SceneBackbone
from m6rec.errors import BackboneError, ConfigError, TunerError
from m6rec.nn.kernels import KernelBank
from m6rec.nn.masks import seen
from m6rec.tuners.inserted import InsertedTuner, read_settings
from m6rec.tuners.state import attached

Form = Literal["variational", "compression", "matching"]


@dataclass(frozen=True)
class IAKConfig:
    """Settings of the kernels."""

    bottleneck: int = 48
    """Numbers that a kernel compresses a state to; an eighth to a quarter of the hidden size (changes results)."""
    beta: float = 1e-3
    """Weight of the divergence, in nats a token and layer, against the task's loss; 0 = a plain bottleneck with noise
    (changes results)."""
    form: Form = "variational"
    """`variational`: encoder and decoder learn together. Or two stages, a run each: `compression` learns the encoders,
    with a linear decoder that is thrown away; `matching` starts from that run's adapter, keeps its encoders and learns
    the decoders, without the divergence (changes results)."""
    scenes: tuple[str, ...] | None = None
    """Names of the scenes, one kernel each; null = those of the recipe, and one for everything where it has none
    (changes results)."""
    log_variance: float = -4.0
    """Logarithm of the codes' variance at the start (changes results)."""
    seed: int = 0
    """Seed of the random start."""

    def __post_init__(self) -> None:
        if self.bottleneck < 1 or self.beta < 0:
            raise ConfigError(
                f"got bottleneck {self.bottleneck} and beta {self.beta}, expected 1 or more and 0 or more"
            )
        if self.scenes is not None and (not self.scenes or len(set(self.scenes)) < len(self.scenes)):
            raise ConfigError(f"scenes: got {list(self.scenes)}, expected one name or more, each once")


class KernelBackbone(SceneBackbone):
    """A backbone with a bank of kernels behind every layer.

    Without ``activate`` it runs only where there is a single scene.

    Args:
        inner: the frozen backbone.
        banks: one a layer.
        scenes: their names.
        beta: weight of the divergence in the penalty.

    Attributes:
        compressed: whether there is anything to match: encoders that have learnt, or that learn along.
    """

    def __init__(self, inner: Backbone, banks: nn.ModuleList, scenes: tuple[str, ...], beta: float) -> None:
        super().__init__(inner)
        self.banks, self.scenes, self.beta, self.compressed = banks, scenes, beta, True
        self.train(inner.training)

    def activate(self, scenes: Int[Tensor, " rows"]) -> "ActiveKernels":
        """Return a view in which every row of a batch is in its own scene.

        Raises:
            BackboneError: there is no such scene.
            TunerError: decoders are to be trained over encoders that have learnt nothing.
        """
        self.check(scenes)
        if self.training and not self.compressed:
            raise TunerError(
                "got form=matching without encoders, expected those of a compression run; train one with "
                "tuner.form=compression, then this one with start=RUN"
            )
        return ActiveKernels(self.inner, self.banks, scenes, self.beta)

    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index`` and the kernel of the only scene.

        Raises:
            BackboneError: there are several.
        """
        if len(self.scenes) > 1:
            raise BackboneError(
                f"got a batch that says nothing of its scenes, expected one of {', '.join(self.scenes)} for each row; "
                "run backbone.activate(scenes)"
            )
        only = torch.zeros(1, dtype=torch.int64, device=hidden.device)
        return self.activate(only).layer(index, hidden, mask, positions, cache)


class ActiveKernels(ActiveBackbone):
    """A frozen backbone whose rows pass, behind every layer, through the kernels of their scenes.

    Args:
        inner: the frozen backbone.
        banks: one a layer.
        scenes: number of each row's scene, or ``[1]``: that of all rows.
        beta: weight of the divergence.
    """

    def __init__(self, inner: Backbone, banks: nn.ModuleList, scenes: Int[Tensor, " rows"], beta: float) -> None:
        super().__init__(inner)
        self.banks, self._scenes, self.beta = banks, scenes, beta
        self._sum, self._count = torch.zeros((), device=scenes.device), 0.0

    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index``, then the kernels; in training, note how far their codes are from the standard normal.

        Raises:
            BackboneError: the batch has another number of rows.
        """
        if len(self._scenes) not in (1, len(hidden)):
            raise BackboneError(
                f"got a batch of {len(hidden)} rows in the scenes of {len(self._scenes)}, expected one scene a row"
            )
        hidden, codes = self.banks[index](self.inner.layer(index, hidden, mask, positions, cache), self._scenes)
        if self.banks.training:
            kept = seen(mask)
            self._sum = self._sum + (codes.divergence() * kept).sum()
            self._count += float(kept.sum())
        return hidden

    def divergence(self) -> Float[Tensor, ""]:
        """Return the mean divergence, in nats a token and layer, of the passes so far; zero outside of training."""
        return self._sum / max(1.0, self._count)

    def penalty(self) -> Float[Tensor, ""]:
        """Return ``beta`` times the divergence."""
        return self.beta * self.divergence()


class IAKTuner(InsertedTuner):
    """Kernels behind every layer of a frozen backbone, a bank of them for all scenes.

    The objective is the information bottleneck: keep of the general knowledge what the scene needs (the task's loss),
    and little else (the divergence, an upper bound of what a code says of its state).

    Source: Jiang et al., "Pre-train and Fine-tune: Recommenders as Large Models" (arXiv 2501.14268): kernels whose
        encoder compresses and whose decoder matches, one a domain, all domains served side by side by activating each
        request's kernel.
    Differs: only its outline was open to us. Behind every layer, linear encoders and decoders, the mean over layers and
        tokens, and both forms are our reconstruction; `variational` reads its two phases as one loss, `compression`
        and `matching` as two runs.
    """

    Config = IAKConfig
    method = "iak"
    free_settings = InsertedTuner.free_settings | {"beta", "log_variance"}

    def insert(self, backbone: Backbone) -> Backbone:
        """Put a bank of kernels behind every layer."""
        config, scenes = self.config, self.config.scenes or ("all",)
        banks = nn.ModuleList(
            KernelBank(
                len(scenes),
                backbone.hidden_size,
                config.bottleneck,
                config.log_variance,
                linear=config.form == "compression",
            )
            for _ in range(backbone.num_layers)
        )
        if config.form == "matching":
            for bank in banks:
                bank.mean.requires_grad_(False)
                bank.log_variance.requires_grad_(False)
        tuned = KernelBackbone(backbone, banks, scenes, 0.0 if config.form == "matching" else config.beta)
        tuned.compressed = config.form != "matching"
        return tuned

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote; a tuner that matches also takes the encoders of one that has compressed.

        Raises:
            TunerError: it is of another method, base model or setting, or damaged.
        """
        attached(self._before)
        if self.config.form == "matching" and read_settings(folder, self.method).get("form") == "compression":
            # The linear decoder has done its work; matching begins at nothing.
            self.take(folder, free={"form"}, without=".decoder.")
        else:
            super().load(folder)
        tuned = self.tuned
        assert isinstance(tuned, KernelBackbone)
        tuned.compressed = True
