"""What a visitor may choose among: rankers with other tuners or granularities, and depths to leave at.

The server's own choice is answered by its own executor; every other one gets a small one of its own, when it is first
asked for, over the same models in memory. Knows no screen.
"""

import asyncio
import copy
from dataclasses import replace

from m6rec.api import Recommender
from m6rec.assemble import Run
from m6rec.compressors.exits import ExitingBackbone
from m6rec.serving.executors.base import Executor
from m6rec.serving.executors.local import LocalExecutor
from m6rec.serving.graphs import GraphConfig, recommender_graph
from m6rec.tasks.ranking.task import Ranking


class Choices:
    """Ways to answer, by name.

    Args:
        recommender: that is served.
        executor: that serves it.

    Attributes:
        names: of all of them, the server's own first.
    """

    def __init__(self, recommender: Recommender, executor: Executor) -> None:
        self.recommender, self.executor = recommender, executor
        rankers = [run for run in recommender.team.runs if isinstance(run.task, Ranking)]
        self._runs: dict[str, Run] = {}
        for run in rankers:
            self._runs |= {_name(each): each for each in _depths(run)}
        self.names = list(self._runs) or ["retrieval alone"]
        self._open: dict[str, tuple[Recommender, Executor]] = {self.names[0]: (recommender, executor)}
        self._opening = asyncio.Lock()

    async def get(self, name: str) -> tuple[Recommender, Executor]:
        """Return who answers under a name; started where it is asked for the first time."""
        async with self._opening:
            if name not in self._open:
                rest = [run for run in self.recommender.team.runs if not isinstance(run.task, Ranking)]
                other = Recommender([*rest, self._runs[name]])
                other.catalog = self.recommender.catalog  # one index, one truth
                executor = LocalExecutor(recommender_graph(other, GraphConfig(degrade=False)))
                await executor.start()
                self._open[name] = (other, executor)
        return self._open[name]

    async def close(self) -> None:
        """End what was started here."""
        for name, (_, executor) in self._open.items():
            if name != self.names[0]:
                await executor.drain(1.0)


def _name(run: Run) -> str:
    """Return how a ranker reads: its folder, its tuner, and where they have them granularity and depth."""
    recipe = run.recipe
    words = [run.folder.name, str(recipe.tuner["name"])]
    if recipe.late_interaction is not None:
        words.append(f"late, by {recipe.late_interaction.granularity}")
    if isinstance(run.backbone, ExitingBackbone):
        words.append(f"{run.backbone.depth} of {run.backbone.num_layers} layers")
    return " · ".join(words)


def _depths(run: Run) -> list[Run]:
    """Return a run as it is served, and at every other depth that it was trained to leave at."""
    backbone = run.backbone
    if not isinstance(backbone, ExitingBackbone):
        return [run]
    others = [run]
    for depth in range(1, backbone.num_layers + 1):
        if depth != backbone.depth:
            shallow = copy.copy(backbone)  # the same weights; only its depth is its own
            shallow.set(replace(backbone.config, depth=depth))
            others.append(replace(run, backbone=shallow))
    return others
