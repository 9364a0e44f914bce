"""RocketQA's ablation on one architecture (recipe `retrieval`): what each step of training retrieval well gives.

Every row has the same encoder, examples, batches and optimiser steps; only what a position is compared with differs:

r0  the items of its own eighth of the batch (in-batch negatives)
r1  those of the whole batch (what cross-batch negatives give eight processes)
r2  mined hard negatives too
r3  of these, only those that the ranker is sure of
r4  of all columns, nothing that the first retriever takes for a positive
r5  r3 with pseudo labels
r6  the ranker as teacher too

`catalogue` is part 1's loss, every item a negative: the largest batch there is. `catalogue_r6` teaches that one.
"""

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from benches.harness import Bench, console
from rich.table import Table

from m6rec.assemble import Experiment, open_experiment, train_run
from m6rec.config import plain
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.amazon import Amazon
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.store import Dataset
from m6rec.evaluation.bootstrap import compare
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.result import Evaluation
from m6rec.recipe import Recipe, read_recipe
from m6rec.runs import CARD_FILE
from m6rec.tasks.base import Task
from m6rec.tasks.retrieval.data import RetrievalScorer
from m6rec.training.dense import DenseRetrieval
from m6rec.training.dense_config import DenseConfig
from m6rec.training.lists import Lists
from m6rec.training.pseudo import PseudoLabels
from m6rec.workflows import stages

HARD = ("dense.hard.num=4",)
DENOISED = (*HARD, "dense.hard.rule=quantile", "dense.hard.threshold=0.5")
GUIDED = (*DENOISED, "dense.guide=0")
# The guide does harm (EXPERIMENTS.md), so that what follows stands on r3.
LABELLED = (*DENOISED, "dense.pseudo.share=0.2")
TAUGHT = (*LABELLED, "dense.distil.weight=1")
ROWS = {
    "r1": ("dense.gather=true",),  # first, for it mines for the others
    "r0": ("dense.gather=false", "training.gradient_accumulation=8"),
    "r2": (*HARD, "dense.hard.rule=none"),
    "r3": DENOISED,
    "r4": GUIDED,
    "r5": LABELLED,
    "r6": TAUGHT,
    "catalogue": ("dense.gather=true", "task.negatives=catalogue"),
    "catalogue_r6": ("task.negatives=catalogue", "dense.pseudo.share=0.2", "dense.distil.weight=1"),
}
WORDS = ("task.negatives=batch", "task.logq=true", "training.num_epochs=null", "training.patience=null")
METRICS = ("ndcg@10", "mrr@10", "recall@50")
BOTH = ("movies", "beauty")
PAIRS = (
    ("r1", "r0"),
    ("r2", "r1"),
    ("r3", "r1"),
    ("r3", "r2"),
    ("r4", "r3"),
    ("r5", "r3"),
    ("r6", "r5"),
    ("r6", "r0"),
    ("catalogue_r6", "catalogue"),
    ("catalogue_r6", "r0"),
)


def run(bench: Bench) -> None:
    names = BOTH[:1] if bench.quick else BOTH
    for name in names:
        ablations = [Ablation(bench, name, seed) for seed in range(bench.seeds)]
        report(bench, name, [ablation.rows() for ablation in ablations])
    bench.figures["gain"] = min(bench.figures[f"{name}_gain"] for name in names)


class Ablation:
    """Every row on one dataset, with one seed; what ``--work`` holds is not trained again, what was stopped goes on.

    Args:
        bench: whose.
        name: of the dataset.
        seed: of everything.
    """

    def __init__(self, bench: Bench, name: str, seed: int) -> None:
        self.bench, self.name, self.seed = bench, name, seed
        self.dataset, self.words = material(bench, name)

    def rows(self) -> dict[str, list[Evaluation]]:
        """Return every row's evaluations."""
        return {row: evaluations(self.trained(row), row) for row in ROWS}

    def folder(self, row: str) -> Path:
        return self.bench.work / f"{self.name}-{row}-{self.seed}"

    def recipe(self, row: str) -> Recipe:
        quick = ("training.max_steps=3", "task.item_layers=1", "task.item_tokens=12") if self.bench.quick else ()
        places = (f"data={self.dataset.folder}", f"out={self.folder(row)}", f"seed={self.seed}")
        return read_recipe("retrieval", [*places, *WORDS, *self.words, *ROWS[row], *quick])

    def trained(self, row: str) -> Experiment:
        """Train one row, unless it is there."""
        out, recipe = self.folder(row), self.recipe(row)
        self.bench.recipe = plain(recipe)
        if not (out / CARD_FILE).is_file():
            train_run(recipe, resume=True, wrap=self.taught)
        return open_experiment(out)

    def taught(self, experiment: Experiment) -> Task:
        """Return the task as its row is taught; r1 finds, and r3 labels what nobody has labelled."""
        config = experiment.recipe.dense
        assert config is not None
        if (self.folder("r1") / CARD_FILE).is_file():  # the texts' vectors are made once
            experiment.task.catalogue.vectors = open_experiment(self.folder("r1")).task.catalogue.vectors
        if not config.needs_lists:
            return DenseRetrieval(experiment.task, config)
        pseudo = self.pseudo if config.pseudo.share else None
        return stages.taught(experiment, config, self.teachers, self.lists, self.folder("lists"), pseudo)

    @cached_property
    def teachers(self) -> stages.Teachers:
        found = stages.open_teachers(self.folder("r1"), self.recipe("r6"))
        self.bench.details.setdefault("ranker", {})[f"{self.name}-{self.seed}"] = asdict(found.report)
        return found

    @cached_property
    def lists(self) -> Lists:
        return stages.mine(self.teachers, DenseConfig().hard, self.folder("lists"))

    @cached_property
    def pseudo(self) -> PseudoLabels:
        recipe = self.recipe("r6")
        assert recipe.dense is not None
        return stages.label(stages.open_teachers(self.folder("r3"), recipe), recipe.dense, self.seed)


def material(bench: Bench, name: str) -> tuple[Dataset, tuple[str, ...]]:
    """Return a dataset, and its words: as long a training as the first epochs of recipe `retrieval`'s."""
    if name == "beauty":
        source = Amazon(Amazon.Config(path=str(bench.folder("amazon-beauty")), layout="llamarec"))
        return bench.prepare(source, name, PrepareConfig(split="given", ties="file")), ("training.max_steps=264",)
    films = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    config = PrepareConfig(ties="file", k_core=0 if bench.quick else 5)
    return bench.prepare(films, name, config), ("task.max_events=100", "training.max_steps=248")


def evaluations(experiment: Experiment, row: str) -> list[Evaluation]:
    """Return the row's evaluation as it is served, and by the learnt score alone."""
    queries = experiment.dataset.histories().queries("test")
    blend, found = experiment.task.blend.clone(), []
    for weight, name in ((1.0, row), (0.0, f"{row}_learnt")):
        experiment.task.blend.copy_(blend * weight)
        scorer = RetrievalScorer(experiment.task, experiment.backbone, name)
        found.append(evaluate(scorer, queries, cutoffs=(10, 50), seed=experiment.recipe.seed))
    return found


def report(bench: Bench, name: str, seeds: list[dict[str, list[Evaluation]]]) -> None:
    """Write every row's figures, and how sure their differences are."""
    values: dict[str, list[float]] = {}
    for seed, rows in enumerate(seeds):
        curves = {row: curve(bench.work / f"{name}-{row}-{seed}") for row in rows}
        budget = min(points[-1][0] for points in curves.values())
        for row, (served, learnt) in rows.items():
            found = {metric: served.means()[metric] for metric in METRICS}
            found["coverage@10"] = served.beyond()["coverage@10"]
            found["learnt_ndcg@10"] = learnt.means()["ndcg@10"]
            found["cpu_seconds"] = curves[row][-1][0]
            # Equal CPU time: what validation had seen when the quickest row was done (at the evaluations there are).
            found["valid_at_equal_cpu"] = max((value for at, value in curves[row] if at <= budget), default=0.0)
            for figure, value in found.items():
                values.setdefault(f"{name}_{row}_{figure}", []).append(float(value))
    bench.average(values)
    figures, shown = bench.figures, (*METRICS, "coverage@10", "learnt_ndcg@10", "valid_at_equal_cpu", "cpu_seconds")
    table = Table("row", *shown, title=name, title_justify="left", box=None)
    for row in ROWS:
        table.add_row(row, *(f"{figures[f'{name}_{row}_{figure}']:.4g}" for figure in shown))
    console.print(table)
    compared = [compare(seeds[0][one][0], seeds[0][other][0], "ndcg@10") for one, other in PAIRS]
    bench.details.setdefault("paired", {})[name] = [asdict(found) for found in compared]
    bench.protocol = seeds[0]["r0"][0].protocol
    figures[f"{name}_gain"] = figures[f"{name}_r6_ndcg@10"] / max(figures[f"{name}_r0_ndcg@10"], 1e-12) - 1


def curve(run: Path) -> list[tuple[float, float]]:
    """Return (CPU-seconds so far, validation NDCG@10 of the learnt score) at every evaluation of a run."""
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["cpu_seconds"], line["evaluation"]["ndcg@10"]) for line in lines if "evaluation" in line]
