"""A run that is not evaluated by rankings: its own figures on what was held out. Knows no command line."""

import time
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from m6rec.assemble import Experiment
from m6rec.coldstart.items import ColdItems
from m6rec.config import plain
from m6rec.errors import DataError
from m6rec.evaluation.texts import write_held_out
from m6rec.runs import versions
from m6rec.tasks.base import Task
from m6rec.tasks.generation.task import Generation
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.retrieval.base import Retriever
from m6rec.tasks.zeroshot.task import ZeroShot

# Texts that are written to be compared; perplexity is of all of them.
TEXTS = 500


@dataclass(frozen=True)
class Measured:
    """Figures of one run.

    Args:
        experiment: the run over its dataset.
        split: what was held out.
        figures: by name.
        seconds: how long it took.
    """

    experiment: Experiment
    split: str
    figures: dict[str, float]
    seconds: float

    def table(self) -> Table:
        """Return the figures as a table."""
        title = f"{self.experiment.dataset.manifest.name}, {self.split}"
        table = Table("figure", "value", box=None, title=title, title_justify="left")
        for name, value in self.figures.items():
            table.add_row(name, f"{value:.4f}")
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the one object that ``--json`` writes."""
        recipe = self.experiment.recipe
        return {
            "metrics": self.figures,
            "protocol": {"split": plain(self.experiment.dataset.manifest.split), "held_out": self.split},
            "seed": recipe.seed,
            "recipe": plain(recipe),
            "data": self.experiment.dataset.manifest.card(),
            "seconds": self.seconds,
            "versions": versions(),
        }


def measures_itself(task: Task) -> bool:
    """Tell whether a task has figures of its own, and no rankings."""
    if isinstance(task, ColdItems):
        return task.config.phases is not None
    return not isinstance(task, Retriever | Ranking | ZeroShot)


def measure_run(
    experiment: Experiment, split: Literal["valid", "test"] = "test", at_most: int | None = None
) -> Measured:
    """Measure a run on one held-out split; what it writes is compared with what people wrote.

    Args:
        experiment: a finished run over its dataset.
        split: what is held out.
        at_most: how many held-out examples are drawn; ``None`` = all, of which no more than ``TEXTS`` are written.

    Raises:
        DataError: the split holds nothing for this task.
    """
    task, backbone, seed = experiment.task, experiment.backbone, experiment.recipe.seed
    started = time.perf_counter()
    figures = task.measure(backbone, split, at_most, seed)
    if figures is None:
        raise DataError(f"{experiment.dataset.folder}: the {split} period holds nothing for the task {task.name!r}")
    if isinstance(task, Generation):
        figures = {task.named(name): value for name, value in figures.items()}
        figures |= write_held_out(task, backbone, split, min(at_most or TEXTS, TEXTS), seed).means()
    return Measured(experiment, split, figures, time.perf_counter() - started)
