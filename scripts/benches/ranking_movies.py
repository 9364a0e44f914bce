"""MovieLens latest-small by time: will the user rate the film 4 or more? Nothing after the cut is known to anybody."""

from benches.harness import Bench

from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.movielens import LatestSmall

METRICS = ("auc", "uauc", "log_loss", "ece")


def run(bench: Bench) -> None:
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    rows = []
    for seed in range(bench.seeds):
        dataset = bench.prepare(source, f"ranking-{seed}", PrepareConfig(split="temporal", seed=seed))
        words = ["task.threshold=4", "task.history_dropout=0.5", "training.max_cpu_seconds=400"]
        experiment = bench.train("ranking", dataset, "ranking-movies", seed, words)
        rows.append(bench.compare(experiment, ("rate",) if bench.quick else ("rate", "din"), 2, "movies"))
    bench.collect(rows, METRICS)
    if not bench.quick:
        bench.ratio("ours_over_din", "ours_auc", "din_auc")
