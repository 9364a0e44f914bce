"""Structured pruning: whole heads, hidden units and layers go, so that the model is faster. Knows no loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m6rec.backbones.anatomy import part
from m6rec.backbones.base import Backbone
from m6rec.backbones.structure import CUTS, Cuts, narrow, set_layers, single_stack
from m6rec.compressors.base import Subject
from m6rec.compressors.cost import Size
from m6rec.compressors.weights import bare_copy, train_whole
from m6rec.errors import BackboneError, ConfigError
from m6rec.tasks.base import Task


@dataclass(frozen=True)
class StructuredConfig:
    """What share of what goes."""

    heads: float = 0.25
    """Share of all attention heads that goes; every layer keeps one. Changes results."""
    units: float = 0.5
    """Share of all hidden units of the feed-forwards that goes; every layer keeps one. Changes results."""
    layers: int = 0
    """Layers that go, the least important first. Changes results."""
    batches: int = 8
    """Training examples, one a batch, that importance is measured on. Changes results."""
    distil: bool = False
    """Whether the pruned model also learns to relate tokens as the run's own does. Changes results."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: got {value}, expected 0 or more and less than 1"
            for name, value in (("heads", self.heads), ("units", self.units))
            if not 0 <= value < 1
        ]
        if self.layers < 0 or self.batches < 1:
            problems.append(f"layers, batches: got {self.layers}, {self.batches}, expected 0 and 1 or more")
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass
class Importance:
    """How much the loss would change without a part, estimated to first order.

    Args:
        heads: ``[layers][heads]``; empty where the family's heads cannot be cut.
        units: ``[layers][hidden units]``.
        layers: ``[layers]``.
    """

    heads: list[Tensor]
    units: list[Tensor]
    layers: Tensor


class Structured:
    """Cut the least important heads, hidden units and layers out of the model, then train the run's recipe on it.

    Args:
        config: how much goes.

    Source: Michel et al. (arXiv 1905.10650) and Molchanov et al. (arXiv 1906.10771): importance is the first-order
        change of the loss, by data, normalised in each layer.
    Differs: sliced and rebuilt by hand. torch-pruning traces a graph to find what depends on what, which a walk over
        layers with a mask of its own does not give; here two matrices a part depend on each other, and they are named.
    """

    Config = StructuredConfig

    def __init__(self, config: StructuredConfig | None = None) -> None:
        self.config = config or StructuredConfig()

    def compress(self, subject: Subject, out: Path) -> dict[str, Any]:
        """Cut, train on, and return sizes and quality."""
        measured = importance(subject.backbone, subject.task, self.config.batches)
        bare = bare_copy(subject)
        before = Size.of(bare.model)
        slim(bare, measured, self.config)
        return train_whole(subject, bare, before, out, distil=self.config.distil)


def importance(backbone: Backbone, task: Task, num_batches: int) -> Importance:
    """Return the importance of every part of a tuned backbone for its task.

    Raises:
        BackboneError: a family whose layers cannot be cut.
    """
    stack, cuts = single_stack(backbone.model), cuts_of(backbone.model)
    sinks = [_bare(part(layer, path)).weight for layer in stack for path in (cuts.mixed, cuts.outer)]
    trained = [weight.requires_grad for weight in sinks]
    scores, layers = [torch.zeros(weight.shape[1]) for weight in sinks], torch.zeros(len(stack))
    for weight in sinks:
        weight.requires_grad_(True)
    examples = task.examples()
    for row in torch.linspace(0, len(examples) - 1, min(num_batches, len(examples))).long().tolist():
        with _Changes(stack) as changes:
            loss = task.loss(backbone, task.collate([examples[row]])).value
        gradients = torch.autograd.grad(loss, [*sinks, *changes.after])
        for number, (weight, gradient) in enumerate(zip(sinks, gradients, strict=False)):
            scores[number] += (weight.detach() * gradient).sum(0).abs()
        changed = zip(changes.before, changes.after, gradients[len(sinks) :], strict=True)
        layers += torch.stack(
            [((after - before) * gradient).sum().abs() for before, after, gradient in changed]
        ).detach()
    for weight, before in zip(sinks, trained, strict=True):
        weight.requires_grad_(before)
    size = head_size(backbone.model)
    heads = [score.view(-1, size).sum(1) for score in scores[::2]] if cuts.heads else []
    return Importance(heads=heads, units=scores[1::2], layers=layers)


def slim(backbone: Backbone, measured: Importance, config: StructuredConfig) -> None:
    """Cut the least important parts out of a bare backbone, in place.

    Raises:
        ConfigError: no layer would be left.
        BackboneError: a family whose layers, or heads, cannot be cut.
    """
    model: Any = backbone.model
    stack, cuts = single_stack(model), cuts_of(model)
    if config.layers >= len(stack):
        raise ConfigError(f"layers: got {config.layers}, expected less than {len(stack)}, all that {backbone.name} has")
    if config.heads and not cuts.heads:
        raise BackboneError(f"heads: got {config.heads} for type {model.config.model_type!r}, whose heads share keys")
    kept = measured.layers.argsort(descending=True)[: len(stack) - config.layers].sort().values.tolist()
    heads = best([measured.heads[n] for n in kept], config.heads) if cuts.heads else [None] * len(kept)
    units, size = best([measured.units[n] for n in kept], config.units), head_size(model)
    for place, own_heads, own_units in zip(kept, heads, units, strict=True):
        columns = None if own_heads is None else (own_heads[:, None] * size + torch.arange(size)).flatten()
        narrow(stack[place], cuts, columns, own_units)
    set_layers(model, [stack[place] for place in kept])
    backbone.num_layers = len(kept)


def best(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Return the numbers, in order, of what is left of each layer when the least important ``share`` of all goes.

    >>> [kept.tolist() for kept in best([torch.tensor([9.0, 1.0]), torch.tensor([0.2, 0.1])], 0.5)]
    [[0], [0]]
    """
    normed = [score / score.norm().clamp(min=1e-12) for score in scores]
    order = torch.cat(normed).argsort(stable=True)
    gone = set(order[: int(share * len(order))].tolist())
    found, start = [], 0
    for score in normed:
        kept = [n for n in range(len(score)) if start + n not in gone] or [int(score.argmax())]
        found.append(torch.tensor(kept))
        start += len(score)
    return found


def cuts_of(model: Any) -> Cuts:
    """Return where a model's layers can be cut.

    Raises:
        BackboneError: nobody has said where.
    """
    if model.config.model_type not in CUTS:
        raise BackboneError(
            f"got a model of type {model.config.model_type!r}, expected one of {', '.join(CUTS)}; choose another "
            "backbone, or say in m6rec/backbones/structure.py where its layers can be cut"
        )
    return CUTS[model.config.model_type]


def head_size(model: Any) -> int:
    """Return the width of one head."""
    config = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _bare(module: Any) -> nn.Linear:
    return getattr(module, "base_layer", module)


class _Changes:
    """What goes into every layer and what comes out of it, during one pass."""

    def __init__(self, stack: nn.ModuleList) -> None:
        self._stack, self.before, self.after = stack, list[Tensor](), list[Tensor]()

    def __enter__(self) -> "_Changes":
        self._hooks = [layer.register_forward_hook(self._keep) for layer in self._stack]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        self.before.append(inputs[0].detach())
        self.after.append(output[0] if isinstance(output, tuple) else output)
