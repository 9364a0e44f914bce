"""M6-Edge from a ranking run on films: megabytes, milliseconds and quality at each exit depth, on one thread."""

from pathlib import Path

import numpy as np
from benches.compressed import (
    LAST,
    PAIRS,
    Request,
    compressed,
    ms_a_request,
    ndcg,
    quality,
    ranking_run,
    requests,
    torch_answer,
)
from benches.harness import Bench, console

from m6rec.compressors.cost import megabytes
from m6rec.edge.folder import GRAPH_FILE, SERVED
from m6rec.edge.recommender import EdgeRecommender

TRAINED = ("training.max_cpu_seconds=300", "training.batch_size=2", "training.head_lr=2e-3", *LAST)


def run(bench: Bench) -> None:
    bench.each_seed(one_seed)
    bench.protocol = {
        "task": "rating of 4 or more by time, words only",
        "ndcg": f"NDCG@10 of each request's judged candidates ({PAIRS} of test); random_ndcg is what chance gets",
        "megabytes": "graph, tokenizer, words and all items' texts",
        "time": "CPU-ms a request on one thread, median of 7 interleaved rounds",
    }


def one_seed(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Return one seed's figures."""
    teacher = ranking_run(bench, seed)
    edge = EdgeRecommender(compressed(bench, Path(teacher.recipe.out), "edge", f"edge-{seed}", TRAINED))
    told = requests(teacher.task, "test", 60 if bench.quick else PAIRS)
    ways = {"teacher": torch_answer(teacher.task, teacher.backbone)}
    for depth in edge.card.depths:
        ways[f"depth_{depth}"] = lambda request, depth=depth: edge.answer(request.tree, request.numbers, depth)
    figures = {"random_ndcg": ndcg(chance, told)}
    for name, answer in ways.items():
        figures |= {f"{name}_auc": quality(answer, told), f"{name}_ndcg": ndcg(answer, told)}
    figures |= {f"{name}_cpu_ms": value for name, value in ms_a_request(ways, told).items()}
    figures["megabytes"] = sum(megabytes(edge.folder / name) for name in SERVED)
    figures["graph_megabytes"] = megabytes(edge.folder / GRAPH_FILE)
    deepest = f"depth_{edge.card.depths[-1]}"
    figures["share_of_teacher_ndcg"] = figures[f"{deepest}_ndcg"] / figures["teacher_ndcg"]
    figures["over_teacher"] = figures["teacher_cpu_ms"] / figures[f"{deepest}_cpu_ms"]
    console.print({name: round(value, 4) for name, value in figures.items()})
    return {"figures": figures}


def chance(request: Request) -> np.ndarray:
    """Return scores that know nothing."""
    return np.random.default_rng(len(request.tree)).random(len(request.labels))
