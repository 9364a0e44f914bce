"""Mining from run folders: a finished retriever and its ranker as a miner, here or on Ray's workers.

Knows neither what is done with the lists nor the stages of a recipe.
"""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m6rec.assemble import Experiment, open_experiment
from m6rec.errors import RunError
from m6rec.on_ray import answered_on_ray
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.retrieval.task import Retrieval
from m6rec.training.dense_config import HardConfig
from m6rec.training.judges import CrossJudge, FusedJudge, Judge
from m6rec.training.mining import Miner, Retriever


@dataclass(frozen=True)
class MinerPlan:
    """Where a miner is opened from; it pickles, and whoever opens it has to see the same disk.

    Args:
        run: folder of the retriever.
        data: folder of the dataset.
        ranker: folder of a ranking run; ``None`` = the retriever's own score and its counted terms.
        hard: how deep and with which index.
    """

    run: str
    data: str
    ranker: str | None
    hard: HardConfig

    def open(self, shards: Path | None) -> tuple[Experiment, Miner]:
        """Open runs and dataset.

        Args:
            shards: folder for the pieces of an index in several; ``None`` = the index is in memory whole.

        Raises:
            RunError: one of them is not of the right kind, or not whole.
        """
        experiment = open_experiment(self.run, self.data)
        task = experiment.task
        if not isinstance(task, Retrieval):
            raise RunError(f"{self.run} holds the task {task.name!r}, expected a retrieval run, which can mine")
        retriever = Retriever(task, experiment.backbone, self.hard.index, self.hard.shards, shards)
        return experiment, Miner(retriever, self._judge(experiment, task), self.hard.depth)

    def _judge(self, experiment: Experiment, task: Retrieval) -> Judge:
        if self.ranker is None:
            return FusedJudge(task.space(), task.material.train)
        found = open_experiment(self.ranker, str(experiment.dataset.folder))
        if not isinstance(found.task, Ranking):
            raise RunError(f"{self.ranker} holds the task {found.task.name!r}, expected a ranking run as dense.ranker")
        return CrossJudge(found.task, found.backbone)


class MiningWorker:
    """What Ray Data keeps in a worker: the runs, opened once.

    Args:
        plan: what to open.
        folder: of the lists.
    """

    def __init__(self, plan: MinerPlan, folder: str) -> None:
        shards = tempfile.mkdtemp()  # a worker's own: others read theirs meanwhile
        atexit.register(shutil.rmtree, shards, ignore_errors=True)
        _, miner = plan.open(Path(shards))
        self._miner, self._lists = miner, miner.lists(Path(folder))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make the parts with these numbers."""
        for number in batch["id"]:
            self._lists.make(int(number), self._miner.part)
        return batch


def mine_on_ray(plan: MinerPlan, miner: Miner, folder: Path, num_workers: int) -> None:
    """Make the parts that ``folder`` lacks by Ray Data's workers; they are byte for byte what ``miner`` would make.

    Args:
        plan: what a worker opens.
        miner: opened from it here, which says what is missing.
        folder: of the lists, on a disk that all workers see.
        num_workers: a core each.

    Raises:
        MissingExtraError: Ray is not installed.
        RunError: as :meth:`Miner.mine`.
    """
    missing = miner.lists(folder).missing()
    if not missing:
        return
    rows = [{"id": number} for number in missing]
    workers = (min(num_workers, len(missing)),) * 2
    for _ in answered_on_ray(MiningWorker, (plan, str(folder)), rows, workers):
        pass
