"""What moves the weights: parameter groups, the learning rate over time, and the moving average of the weights.

This module knows no task, data or file.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from m6rec.errors import CheckpointError, ConfigError
from m6rec.training.config import TrainingConfig

# The first step of a warm-up moves a little too: a budget in CPU-seconds stands at exactly 0 then.
FLOOR = 0.01


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients by name, each once.

    Raises:
        ConfigError: there is none.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ConfigError("nothing to train: got no parameter that requires gradients; attach a tuner or give a head")
    return trained


def build_optimizer(task: nn.Module, backbone: nn.Module, config: TrainingConfig) -> AdamW:
    """Return AdamW over the trained parameters: heads at their own rate, norms, biases and tables undecayed.

    Args:
        task: holds the heads.
        backbone: holds the tuner; a parameter of both is the backbone's.
        config: rates and decay.
    """
    inside = {parameter for parameter in backbone.parameters() if parameter.requires_grad}
    # A row of a table moves only when it is met: decay would shrink what is rare.
    tables = {p for module in task.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    heads = [p for p in task.parameters() if p.requires_grad and p not in inside]
    head_lr = config.lr if config.head_lr is None else config.head_lr
    groups = []
    for parameters, lr in (([p for p in backbone.parameters() if p in inside], config.lr), (heads, head_lr)):
        # Norms, biases and scalars (a temperature) are what has fewer than two dimensions.
        for decayed in (True, False):
            chosen = [p for p in parameters if (p.ndim >= 2 and p not in tables) == decayed]
            if chosen:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "lr": lr, "peak_lr": lr, "weight_decay": decay})
    return AdamW(groups, betas=(0.9, config.beta2), fused=True)


def rate(progress: float, config: TrainingConfig) -> float:
    """Return the share of the peak learning rate at ``progress`` (0 to 1) of the training.

    >>> [round(rate(p, TrainingConfig(warmup=0.5, schedule="linear")), 2) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.01, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < config.warmup:
        return max(progress / config.warmup, FLOOR)
    if config.schedule == "constant" or config.warmup == 1:
        return 1.0
    left = 1 - (min(progress, 1.0) - config.warmup) / (1 - config.warmup)
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def set_rate(optimizer: Optimizer, share: float) -> None:
    """Set every group's learning rate to ``share`` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def optimizer_tensors(optimizer: Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors named ``"parameter|key"``."""
    return {
        f"{name}|{key}": value
        for name, parameter in trained.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: Optimizer, trained: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` gave.

    Raises:
        CheckpointError: a tensor belongs to no trained parameter.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("|")
        if name not in trained:
            raise CheckpointError(
                f"the checkpoint's optimiser holds {name!r}, which is not trained now; use its recipe"
            )
        state.setdefault(name, {})[key] = tensor
    names = {id(parameter): name for name, parameter in trained.items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {"state": {index: state[name] for index, name in enumerate(order) if name in state}, "param_groups": groups}
    )


class WeightAverage:
    """Exponential moving average of the trained weights.

    Args:
        trained: name -> parameter, as they are before the first step.
        decay: share of the average that a step keeps; smaller in the first steps, so that the start is forgotten.

    Attributes:
        tensors: name -> averaged weight.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self.trained, self.decay = trained, decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` (from 1)."""
        decay = min(self.decay, step / (step + 9))
        for name, parameter in self.trained.items():
            self.tensors[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights in place of the trained ones for a while."""
        kept = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        copy_weights(self.tensors, self.trained)
        try:
            yield
        finally:
            copy_weights(kept, self.trained)


@torch.no_grad()
def copy_weights(source: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Write ``source`` into the tensors of the same names.

    Raises:
        CheckpointError: names or shapes differ.
    """
    if wrong := sorted(source.keys() ^ trained.keys()):
        raise CheckpointError(f"the checkpoint holds other weights, e.g. {wrong[0]!r}; use the recipe it was made by")
    for name, tensor in trained.items():
        if source[name].shape != tensor.shape:
            shapes = f"{tuple(source[name].shape)}, expected {tuple(tensor.shape)}"
            raise CheckpointError(f"the checkpoint's {name!r} has shape {shapes}; use the recipe it was made by")
    for name, tensor in trained.items():
        tensor.copy_(source[name])
