"""Backbones with a part of their own for every scene, and the view of one that a batch of rows runs through.

A scene is a period, a place, a domain, a genre: whatever splits the requests of one recommender. Which scene a row is
of is said by whoever has the batch, by handing its task the *activated* backbone. Nothing is kept from one batch to the
next, so that requests of different scenes may run at the same time. This module knows no tuner, no task, and no rule
that tells scenes apart.
"""

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.backbones.base import Backbone, WrappedBackbone
from m6rec.errors import BackboneError


class ActiveBackbone(WrappedBackbone):
    """A backbone whose rows stand in their scenes, for the passes of one batch."""

    @abstractmethod
    def penalty(self) -> Float[Tensor, ""]:
        """Return what the passes so far add to the loss (zero where nothing does)."""


class SceneBackbone(WrappedBackbone):
    """A backbone with a part of its own for every scene.

    Attributes:
        scenes: their names; a scene's number is its place among them.
    """

    scenes: tuple[str, ...]

    @abstractmethod
    def activate(self, scenes: Int[Tensor, " rows"]) -> ActiveBackbone:
        """Return a view in which every row of a batch is in a scene of its own.

        Args:
            scenes: number of each row's scene, or ``[1]``: that of all rows of every batch.

        Raises:
            BackboneError: there is no such scene.
        """

    def check(self, scenes: Int[Tensor, " rows"]) -> None:
        """Refuse numbers that no scene has.

        Raises:
            BackboneError: there is no such scene.
        """
        if strangers := set(scenes.tolist()) - set(range(len(self.scenes))):
            raise BackboneError(
                f"got scenes {sorted(strangers)}, expected 0 to {len(self.scenes) - 1} ({', '.join(self.scenes)}); "
                "take the numbers from the rule that the backbone was tuned with"
            )


def in_scenes(backbone: Backbone, scenes: Int[Tensor, " rows"]) -> Backbone:
    """Return ``backbone`` with the rows of a batch in their scenes, as far as it tells scenes apart.

    A backbone without scenes is returned as it is, and one with a single scene is in it whatever the rows' are: that is
    how one shared part is compared with a part a scene.

    Args:
        backbone: any.
        scenes: number of each row's scene, or ``[1]``: that of all rows.
    """
    if not isinstance(backbone, SceneBackbone):
        return backbone
    scenes = torch.zeros_like(scenes[:1]) if len(backbone.scenes) == 1 else scenes
    return backbone.activate(scenes.to(backbone.control.device))


def score_in_scenes(
    backbone: Backbone,
    scenes: NDArray[np.integer],
    score: Callable[[Backbone, NDArray[np.int64]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Return ``[rows]`` scores, each given in its row's scene; the rows of a scene are scored together.

    Args:
        backbone: any (:func:`in_scenes`).
        scenes: ``[rows]`` number of each row's scene.
        score: activated backbone, row numbers -> their scores.
    """
    scores = np.zeros(len(scenes), dtype=np.float32)
    for scene in np.unique(scenes):
        rows = np.flatnonzero(scenes == scene)
        scores[rows] = score(in_scenes(backbone, torch.tensor([int(scene)])), rows)
    return scores
