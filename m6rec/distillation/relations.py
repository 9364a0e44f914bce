"""A task whose backbone also learns to relate tokens as a teacher's does. Knows no loop and no task of its own."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m6rec.backbones.anatomy import anatomy_of, part
from m6rec.backbones.base import Backbone, WrappedBackbone
from m6rec.distillation.losses import relation_loss
from m6rec.errors import BackboneError
from m6rec.tasks.base import Loss, Task, WrappedTask
from m6rec.text.batch import TokenBatch

# Queries, keys and values of one layer, as paths into it.
PROJECTIONS = {
    "bert": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "llama": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "qwen3": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}


@dataclass(frozen=True)
class RelationConfig:
    """How relations are learnt."""

    weight: float = 1.0
    """Of the relations' loss beside the task's own; 0 = none. Changes results."""
    num_heads: int = 12
    """Relation heads, at most: the largest number that divides it and both widths is taken. Changes results."""


class RelationTask(WrappedTask):
    """A task whose loss also holds the last layer's relations against a teacher's.

    Args:
        inner: the task.
        teacher: frozen; it is no part of the task, so it is neither trained nor saved.
        config: weight and heads.

    Source: MiniLMv2 (arXiv 2012.15828); M6-Rec (arXiv 2205.08084), M6-Edge, distils so at pre-training.
    Differs: on the task's own texts and together with its loss; the last layers of both, where MiniLMv2 takes an
        inner one of large teachers.
    """

    def __init__(self, inner: Task, teacher: Backbone, config: RelationConfig) -> None:
        super().__init__(inner)
        self._teacher, self.config = [teacher], config  # in a list: torch must not see it as a part

    def loss(self, backbone: Backbone, batch: Any) -> Loss:
        """Return the task's loss and the relations'.

        Raises:
            BackboneError: the teacher cannot read what the student reads.
        """
        self._check(backbone)
        listener = _Listener(backbone)
        with listening(backbone) as found:
            own = self.inner.loss(listener, batch)
        with torch.no_grad(), listening(self._teacher[0]) as wanted:
            for tokens in listener.batches:
                self._teacher[0](tokens)
        relations = self._compare(backbone, listener.batches, wanted, found)
        figures = {**own.figures, "task": float(own.value.detach()), "relations": float(relations.detach())}
        return Loss(own.value + self.config.weight * relations, own.weight, figures)

    def _check(self, backbone: Backbone) -> None:
        teacher = self._teacher[0]
        if len(teacher.tokenizer) != len(backbone.tokenizer) or teacher.max_tokens < backbone.max_tokens:
            raise BackboneError(
                f"got the teacher {teacher.name} ({len(teacher.tokenizer)} tokens, {teacher.max_tokens} positions) for "
                f"{backbone.name} ({len(backbone.tokenizer)}, {backbone.max_tokens}), expected one with the same "
                "tokenizer and as many positions; share or cut the teacher's own backbone"
            )

    def _compare(
        self,
        backbone: Backbone,
        batches: Sequence[TokenBatch],
        wanted: list[list[Tensor]],
        found: list[list[Tensor]],
    ) -> Tensor:
        losses = []
        for number, tokens in enumerate(batches):
            width = tokens.ids.shape[1]  # virtual tokens stand before it, and each side may have its own
            mask = backbone.mask(backbone.extend(tokens))[..., -width:, -width:]
            pairs = zip(wanted, found, strict=True)
            for theirs, ours in pairs:
                teacher, student = theirs[number][:, -width:], ours[number][:, -width:]
                heads = math.gcd(self.config.num_heads, teacher.shape[-1], student.shape[-1])
                losses.append(relation_loss(teacher, student, mask, heads))
        return torch.stack(losses).mean()


class _Listener(WrappedBackbone):
    """A view that keeps what it was asked to read."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.batches: list[TokenBatch] = []

    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Tensor:
        self.batches.append(batch)
        return self.inner(batch, layers)


@contextmanager
def listening(backbone: Backbone) -> Iterator[list[list[Tensor]]]:
    """Collect what the last layer's query, key and value projections give, pass after pass.

    Raises:
        BackboneError: the family keeps them in one matrix, or elsewhere.
    """
    model: Any = backbone.model
    paths = PROJECTIONS.get(model.config.model_type)
    if paths is None:
        raise BackboneError(
            f"got a model of type {model.config.model_type!r}, expected one of {', '.join(PROJECTIONS)}: relations are "
            "learnt where queries, keys and values are apart"
        )
    last: nn.Module = part(model, anatomy_of(model.config).layers[0])[-1]
    kept: list[list[Tensor]] = [[] for _ in paths]
    hooks = [part(last, path).register_forward_hook(_keep(kept[n])) for n, path in enumerate(paths)]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _keep(values: list[Tensor]) -> Any:
    return lambda module, inputs, output: values.append(output)
