"""What a teacher is worth to a small ranker on films, by every way that labels can come; and the edge model's way.

The teacher is the ranking recipe as it is, which also reads the statistics as numbers; the student goes by words alone,
so that there is something to be taught (privileged features, Xu et al., arXiv 1907.05171). It is the same each time:
two layers of MiniLM, the same examples in the same order, the same steps. Its CPU time is what differs, and where the
teacher's is spent.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benches.compressed import LAST, PAIRS, Request, compressed, films, ndcg, quality, requests, torch_answer
from benches.harness import Bench, console

from m6rec.assemble import Experiment, learnt, open_experiment, train_run
from m6rec.distillation.lessons import Ask
from m6rec.edge.recommender import EdgeRecommender
from m6rec.recipe import read_recipe
from m6rec.runs import CARD_FILE
from m6rec.tasks.base import Task
from m6rec.tasks.ranking.task import Ranking
from m6rec.workflows.distilling import LABELS_FOLDER, open_teacher, taught

WORDS = ("task.threshold=4", "task.history_dropout=0.5", "training.batch_size=4", *LAST)
TEACHER = ("training.max_cpu_seconds=200",)
STUDENT = ("task.numbers=false", "backbone.layers=2", "training.lr=2e-4", "training.head_lr=2e-3")
SOURCES = ("none", "online", "elastic", "offline")
# Trees that every student learns from, twice: a label costs as much as the student's own step, and all are labelled.
TREES, EPOCHS = 160, 2
EDGE = ("training.max_cpu_seconds=120", "training.batch_size=2", "training.head_lr=2e-3", *LAST)


def run(bench: Bench) -> None:
    bench.each_seed(one_seed)
    bench.figures |= bench.once("distillation-edge", lambda: edge(bench))
    bench.protocol = {
        "task": "rating of 4 or more by time; the teacher sees words and numbers, its students words only",
        "student": f"two layers of MiniLM, all weights, {TREES} trees {EPOCHS} times; alpha 0.7 with a teacher",
        "ndcg": f"NDCG@10 of each request's judged candidates ({PAIRS} of test); random_ndcg is what chance gets",
        "crossover": "epochs from which labels written once cost less time than asking the teacher in every epoch",
        "edge": "the edge recipe with its training stages taught by the run through the elastic path, deepest exit",
    }


def one_seed(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Return one seed's figures."""
    teacher = trained_teacher(bench, seed)
    told = requests(teacher.task, "test", 24 if bench.quick else PAIRS)
    figures = {"random_ndcg": ndcg(chance, told)} | worth("teacher", teacher, told)
    for source in SOURCES:
        out = student(bench, teacher, source, seed)
        figures |= worth(source, open_experiment(out, teacher.recipe.data), told)
    figures |= {f"{source}_minus_none_ndcg": figures[f"{source}_ndcg"] - figures["none_ndcg"] for source in SOURCES[1:]}
    figures |= crossover(bench, teacher, seed)
    console.print({name: round(value, 4) for name, value in figures.items()})
    return {"figures": figures}


def trained_teacher(bench: Bench, seed: int) -> Experiment:
    """Return the teacher's run."""
    return bench.train("ranking", films(bench, seed), "teacher", seed, [*WORDS, *TEACHER])


def chance(request: Request) -> np.ndarray:
    """Return scores that know nothing."""
    return np.random.default_rng(len(request.tree)).random(len(request.labels))


def worth(name: str, experiment: Experiment, told: Sequence[Request]) -> dict[str, float]:
    """Return a run's quality."""
    assert isinstance(experiment.task, Ranking)
    answer = torch_answer(experiment.task, experiment.backbone)
    return {f"{name}_auc": quality(answer, told), f"{name}_ndcg": ndcg(answer, told)}


def student(bench: Bench, teacher: Experiment, source: str, seed: int) -> Path:
    """Return the run of a student whose labels come from ``source``; one that is there is not trained again."""
    out = bench.work / f"distilled-{source}-{seed}"
    if (out / CARD_FILE).is_file():
        return out
    places = [f"data={teacher.recipe.data}", f"out={out}", f"seed={seed}", *WORDS, *STUDENT]
    steps = ["training.max_steps=2"] if bench.quick else [f"training.num_epochs={EPOCHS}"]
    taught_by = [f"distillation.teacher={teacher.recipe.out}"]
    if source != "none":
        taught_by.append(f"distillation.source={source}")
    with ExitStack() as until_done:

        def wrap(experiment: Experiment) -> Task:
            few(experiment.task, 8 if bench.quick else TREES)
            return untaught(experiment) if source == "none" else taught(experiment, until_done)

        train_run(read_recipe("distillation", [*places, *steps, *taught_by]), wrap=wrap)
    return out


def few(task: Any, number: int) -> None:
    """Leave a task some of its training trees, evenly spread over the users."""
    rows = task.examples()
    chosen = np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int)
    task._rows = rows.select(chosen.tolist()).flatten_indices()


def untaught(experiment: Experiment) -> Task:
    """Return the task alone."""
    return learnt(replace(experiment, recipe=replace(experiment.recipe, distillation=None)))


def crossover(bench: Bench, teacher: Experiment, seed: int) -> dict[str, float]:
    """Return what labels cost to make, to keep and to read, and from which number of epochs on keeping them pays."""
    folder = bench.work / f"distilled-offline-{seed}" / LABELS_FOLDER
    opened, ask = open_teacher(teacher.recipe.out), Ask("logits", 1.0, 32)
    task, examples = teacher.task, teacher.task.examples()
    batches = [task.collate([examples[index] for index in range(first, first + 4)]) for first in range(0, 16, 4)]
    making = cpu_seconds(lambda: [opened.label(batch, ask) for batch in batches]) / 16
    parts = list(folder.rglob("part-*"))
    trees = 8 if bench.quick else TREES
    reading = cpu_seconds(lambda: [path.read_bytes() for path in parts]) / trees
    return {
        "teacher_cpu_seconds_per_example": making,
        "stored_bytes_per_example": sum(path.stat().st_size for path in parts) / trees,
        "read_cpu_seconds_per_example": reading,
        "crossover_epochs": making / max(making - reading, 1e-9),
    }


def cpu_seconds(job: Any) -> float:
    """Return the CPU-seconds of one call."""
    started = time.process_time()
    with torch.no_grad():
        job()
    return time.process_time() - started


def edge(bench: Bench) -> dict[str, float]:
    """Return what the edge model keeps of its teacher when the elastic path teaches it."""
    teacher = trained_teacher(bench, 0)
    words = (*EDGE, "distillation.source=elastic", "distillation.alpha=0.5")
    model = EdgeRecommender(compressed(bench, Path(teacher.recipe.out), "edge", "edge-elastic", words))
    told = requests(teacher.task, "test", 24 if bench.quick else PAIRS)

    def deepest(request: Request) -> np.ndarray:
        return model.answer(request.tree, request.numbers, model.card.depths[-1])

    figures = worth("edge_teacher", teacher, told)
    figures |= {"edge_ndcg": ndcg(deepest, told), "edge_auc": quality(deepest, told)}
    return figures | {"edge_share_of_teacher_ndcg": figures["edge_ndcg"] / figures["edge_teacher_ndcg"]}
