"""Early exit: heads at every layer, so that easy requests, or small machines, need not run them all.

Knows neither how a run is trained nor any task.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from m6rec.compressors.base import Subject
from m6rec.compressors.exit_config import ExitConfig
from m6rec.compressors.exits import ExitingBackbone
from m6rec.config import plain


class EarlyExit:
    """Train heads at every layer and let requests leave at any.

    The run is trained on, from its own adapter, with the weighted sum of its losses at all depths.

    Args:
        config: weights of the losses, depth and policy.

    Source: M6-Rec (arXiv 2205.08084), M6-Edge; BranchyNet (arXiv 1709.01686).
    """

    Config = ExitConfig

    def __init__(self, config: ExitConfig | None = None) -> None:
        self.config = config or ExitConfig()

    def compress(self, subject: Subject, out: Path) -> dict[str, Any]:
        """Train the exits and return the held-out figures at every depth."""
        changes = {"exits": plain(self.config), "start": str(subject.folder)}
        trained = subject.retrain(out, changes)
        return {"depths": figures_by_depth(trained)}


def figures_by_depth(subject: Subject) -> list[dict[str, float]]:
    """Return the held-out figures of a run with exits at depth 1, 2, ..., without any policy."""
    backbone = subject.backbone
    assert isinstance(backbone, ExitingBackbone)
    before, found = backbone.config, []
    for depth in range(1, backbone.num_layers + 1):
        backbone.set(replace(before, depth=depth, first=1, policy="never"))
        found.append({"depth": depth, **subject.measure(backbone)})
    backbone.set(before)
    return found
