"""MovieLens latest-small by time: will the user rate the film 4 or more? Nothing after the cut is known to anybody."""

import numpy as np
import torch
from benches.harness import Bench
from numpy.typing import NDArray

from m6rec.assemble import build
from m6rec.data.features import features
from m6rec.data.histories import Judgements
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.movielens import LatestSmall
from m6rec.evaluation.pairs import evaluate_pairs
from m6rec.tasks.ranking.data import pair_statistics
from m6rec.tasks.ranking.task import Ranking

METRICS = ("auc", "uauc", "log_loss", "ece")
WORDS = ("task.threshold=4", "task.history_dropout=0.5", "training.max_cpu_seconds=300")


def run(bench: Bench) -> None:
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    rows, numbers = [], []
    for seed in range(bench.seeds):
        dataset = bench.prepare(source, f"ranking-{seed}", PrepareConfig(split="temporal", seed=seed))
        experiment = bench.train("ranking", dataset, "ranking-movies", seed, WORDS)
        rows.append(bench.compare(experiment, ("rate",) if bench.quick else ("rate", "din"), 1, "movies"))
        # What training starts from: the statistics as numbers, without a word read.
        untrained = build(experiment.recipe).task
        numbers.append(evaluate_pairs(NumbersAlone(untrained), untrained.pairs("test")).means())
    bench.collect(rows, METRICS)
    for metric in METRICS:
        bench.figures[f"numbers_alone_{metric}"] = float(np.mean([means[metric] for means in numbers]))
    if not bench.quick:
        bench.ratio("ours_over_din", "ours_auc", "din_auc")


class NumbersAlone:
    """The number head of a ranking task, as it is before the language model is trained."""

    name = "numbers alone"

    def __init__(self, task: Ranking) -> None:
        self.task = task

    @torch.no_grad()
    def score_pairs(self, pairs: Judgements) -> NDArray[np.float32]:
        statistics = pair_statistics(self.task.statistics_for("test"), pairs, past_only=False)
        return torch.sigmoid(self.task.numbers(torch.from_numpy(features(statistics))))[:, 0].numpy()
