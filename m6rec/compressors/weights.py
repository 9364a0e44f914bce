"""The weights of a tuned backbone as a bare one's, and what a changed one is trained to. Knows no method."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from m6rec.backbones.base import Backbone
from m6rec.backbones.resolve import resolve_backbone
from m6rec.backbones.structure import save_structured
from m6rec.compressors.base import Subject
from m6rec.compressors.cost import Size
from m6rec.errors import RunError
from m6rec.tasks.base import Task

# In a compressed run's folder: what training started from, and what came out, each a backbone folder of its own.
BACKBONE_FOLDER, COMPRESSED_FOLDER = "backbone", "compressed"


def bare_copy(subject: Subject) -> Backbone:
    """Return a run's backbone anew, without its adapter but with what can be folded of it (LoRA, IA3, full) folded in.

    Raises:
        RunError: the tuned model has not the weights of its base.
    """
    base = subject.recipe["backbone"]
    fresh = resolve_backbone(base["name"], base.get("revision"))
    with merged(subject.backbone), torch.no_grad():
        tuned = {name.replace("base_layer.", ""): w for name, w in subject.backbone.model.named_parameters()}
        for name, weight in fresh.model.named_parameters():
            if name not in tuned or tuned[name].shape != weight.shape:
                raise RunError(f"{subject.folder}: the tuned model lacks {name!r} of {base['name']}; train it again")
            weight.copy_(tuned[name])
    return fresh


def train_whole(
    subject: Subject,
    changed: Backbone,
    before: Size,
    out: Path,
    wrap: Callable[[Task, Backbone], Task] | None = None,
    distil: bool = False,
) -> dict[str, Any]:
    """Train all weights of a changed backbone in a run's place, keep both, and return sizes and quality.

    Args:
        subject: the run.
        changed: what training starts from.
        before: size of the run's own, without adapter.
        out: folder of the new run.
        wrap: as :class:`m6rec.compressors.base.Retrain` has it.
        distil: the same.
    """
    save_structured(changed, out / BACKBONE_FOLDER)
    changes = {"backbone": {"name": str(out / BACKBONE_FOLDER)}, "tuner": {"name": "full"}, "start": None}
    trained = subject.retrain(out, changes, wrap=wrap, distil=distil)
    save_structured(trained.backbone, out / COMPRESSED_FOLDER)
    sizes = {"before": asdict(before), "after": asdict(Size.of(trained.backbone.model))}
    return {**sizes, "quality": trained.measure(trained.backbone)}


@contextmanager
def merged(backbone: nn.Module) -> Iterator[None]:
    """Fold what can be folded of an adapter into the weights for a while."""
    layers = [layer for layer in backbone.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer in layers:
            layer.unmerge()
