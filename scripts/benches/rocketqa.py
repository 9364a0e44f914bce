"""RocketQA's ablation on one architecture (recipe `retrieval`): what each step of training retrieval well gives.

Every row has the same encoder, examples, batches and optimiser steps; only what a position is compared with differs:

r0  the items of its own eighth of the batch (in-batch negatives)
r1  those of the whole batch (what cross-batch negatives give eight processes)
r2  mined hard negatives too
r3  of these, only those that the ranker is sure of
r4  nothing that the first retriever takes for a positive
r5  pseudo labels too
r6  the ranker as teacher too

`catalogue` is part 1's loss, every item a negative: the largest batch there is. `catalogue_r6` teaches that one.
"""

import shutil
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
from benches.harness import Bench, console
from rich.table import Table

from m6rec import stages
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
from m6rec.runs import CARD_FILE, read_card
from m6rec.tasks.base import Task
from m6rec.tasks.retrieval_data import RetrievalScorer
from m6rec.training.dense import DenseRetrieval
from m6rec.training.dense_config import DenseConfig
from m6rec.training.lists import Lists
from m6rec.training.pseudo import PseudoLabels

HARD = ("dense.hard.num=4",)
DENOISED = (*HARD, "dense.hard.rule=quantile", "dense.hard.threshold=0.5")
GUIDED = (*DENOISED, "dense.guide=0")
LABELLED = (*GUIDED, "dense.pseudo.share=0.2")
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


def run(bench: Bench) -> None:
    names = BOTH[:1] if bench.quick else BOTH
    for name in names:
        ablations = [Ablation(bench, name, seed) for seed in range(bench.seeds)]
        report(bench, name, [ablation.rows() for ablation in ablations])
    bench.figures["gain"] = min(bench.figures[f"{name}_gain"] for name in names)


class Ablation:
    """Every row on one dataset, with one seed; what ``--work`` holds is not trained again.

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
            shutil.rmtree(out, ignore_errors=True)
            train_run(recipe, wrap=self.taught)
        self.bench.details.setdefault("cpu_seconds", {})[out.name] = read_card(out)["cpu_seconds"]
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
    table = Table("row", *METRICS, "coverage@10", "learnt ndcg@10", "CPU-s", title=name, title_justify="left", box=None)
    values: dict[str, list[float]] = {}
    for row in ROWS:
        for rows in seeds:
            served, learnt = rows[row]
            means = {**served.means(), "coverage@10": served.beyond()["coverage@10"]}
            for metric in (*METRICS, "coverage@10"):
                values.setdefault(f"{name}_{row}_{metric}", []).append(means[metric])
            values.setdefault(f"{name}_{row}_learnt_ndcg@10", []).append(learnt.means()["ndcg@10"])
        shown = [
            f"{np.mean(values[f'{name}_{row}_{metric}']):.4f}" for metric in (*METRICS, "coverage@10", "learnt_ndcg@10")
        ]
        seconds = [bench.details["cpu_seconds"][f"{name}-{row}-{seed}"] for seed in range(len(seeds))]
        values[f"{name}_{row}_cpu_seconds"] = seconds
        table.add_row(row, *shown, f"{np.mean(seconds):.0f}")
    console.print(table)
    bench.average(values)
    first = seeds[0]
    pairs = [
        ("r1", "r0"),
        ("r2", "r1"),
        ("r3", "r1"),
        ("r3", "r2"),
        ("r4", "r3"),
        ("r5", "r4"),
        ("r6", "r5"),
        ("r6", "r0"),
    ]
    compared = [
        compare(first[one][0], first[other][0], "ndcg@10") for one, other in [*pairs, ("catalogue_r6", "catalogue")]
    ]
    bench.details.setdefault("paired", {})[name] = [asdict(found) for found in compared]
    bench.protocol = first["r0"][0].protocol
    bench.figures[f"{name}_gain"] = (
        bench.figures[f"{name}_r6_ndcg@10"] / max(bench.figures[f"{name}_r0_ndcg@10"], 1e-12) - 1
    )
