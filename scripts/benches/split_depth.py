"""At how deep a layer to join: quality against time and cache bytes, L' from none to all of MiniLM's six layers.

Ranking by words alone (no number head), as many steps at every depth; MovieLens by time (4 stars are a yes), and Beauty
(random negatives). With all layers below, [EOS] has seen nothing, and what is left is chance.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from benches.harness import Bench, console
from rich.table import Table

from m6rec.data.candidates import SampledCandidates
from m6rec.data.histories import Queries
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.amazon import Amazon
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.store import Dataset
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.pairs import evaluate_pairs
from m6rec.late_interaction.scorer import LateScorer, served
from m6rec.tasks.ranking.scorer import RankingScorer

DEPTHS = (0, 2, 3, 4, 6)
STEPS = 80
USERS, TIMED, PAIRS = 20, 5, 4000
SAME = (
    "task.numbers=false",
    "task.history_dropout=0.2",
    "task.max_events=12",
    "task.max_branches=12",
    "training.evaluate_every=null",
    "training.evaluate_first=false",
    "training.select_on=null",
    "training.select_lowest=false",
)


def run(bench: Bench) -> None:
    for data in ("ml",) if bench.quick else ("ml", "beauty"):
        arms = {"joint": fully_joint()}
        for depth in (3,) if bench.quick else DEPTHS:
            arms[f"depth-{depth}"] = late_words(depth)
        arms["pooled-3"] = [*late_words(3), "late_interaction.granularity=pooled"]
        shown = Table("arm", "AUC", "NDCG@10", "CPU-ms", "bytes a segment", box=None, title=data, title_justify="left")
        for name, words in arms.items():
            found = bench.once(name if data == "ml" else f"{data}-{name}", partial(judged, bench, data, name, words))
            shown.add_row(name, *(f"{found[figure]:.4g}" for figure in ("auc", "ndcg@10", "cpu_ms", "segment_bytes")))
            bench.figures |= {f"{data}_{name}_{figure}": value for figure, value in found.items()}
        console.print(shown)
    bench.protocol = {
        "steps": STEPS,
        "ndcg": f"of {USERS} users' held-out items among 100 random ones",
        "cpu_ms": "a request of about 100 candidates, its words included; the cache is hot",
    }


def late_words(depth: int) -> list[str]:
    """Return the recipe's words of late interaction below ``depth`` layers."""
    return [*fully_joint(), f"late_interaction.layers={depth}"]


def fully_joint() -> list[str]:
    """Return the recipe's words of the model that reads every prompt whole."""
    return [*SAME, f"training.max_steps={STEPS}"]


def judged(bench: Bench, data: str, name: str, words: list[str]) -> dict[str, float]:
    """Train one arm and return its quality, CPU-ms a request, and cache bytes a segment."""
    dataset = prepared(bench, data)
    threshold = ["task.threshold=4"] if data == "ml" else ["task.num_negatives=4"]
    experiment = bench.train("ranking", dataset, f"{data}-{name}", 0, [*words, *threshold])
    # In service a tree holds a whole request.
    experiment.task.config = replace(experiment.task.config, max_branches=128)
    backbone = served(experiment.backbone.requires_grad_(False).eval())
    scorer = RankingScorer(experiment.task, backbone, "test")
    pairs = experiment.task.pairs("test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(pairs))[: 200 if bench.quick else PAIRS])
    queries = dataset.histories().queries("test").take(np.arange(4 if bench.quick else USERS))
    auc = evaluate_pairs(scorer, pairs.take(chosen)).means()["auc"]
    ndcg = evaluate(scorer, queries, candidates=SampledCandidates(100)).means()["ndcg@10[sampled=100]"]
    size = backbone.cache.used_bytes / len(backbone.cache) if isinstance(backbone, LateScorer) else 0.0
    return {"auc": auc, "ndcg@10": ndcg, "cpu_ms": request_cpu_ms(scorer, queries), "segment_bytes": size}


def request_cpu_ms(scorer: RankingScorer, queries: Queries) -> float:
    """Return the CPU-milliseconds of a request of 100 candidates, at its second time: the cache is hot."""
    items = SampledCandidates(100)
    spent = []
    for number in range(min(TIMED, len(queries))):
        query = queries.take(np.array([number]))
        scorer.score_candidates(query, items.of(query))
        if isinstance(scorer.backbone, LateScorer):
            scorer.backbone.forget_trunks()
        started = time.process_time()
        scorer.score_candidates(query, items.of(query))
        spent.append(1000 * (time.process_time() - started))
    return float(np.median(spent))


def prepared(bench: Bench, data: str) -> Dataset:
    """Return one dataset, by time or as it is published."""
    if data == "ml":
        source: Any = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
        return bench.prepare(source, "ml-by-time", PrepareConfig(split="temporal"))
    source = Amazon(Amazon.Config(path=str(bench.folder("amazon-beauty")), layout="llamarec"))
    return bench.prepare(source, "beauty", PrepareConfig(split="given", ties="file"))
