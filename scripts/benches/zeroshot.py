"""MovieLens latest-small and Amazon Beauty: a language model of the domain's text orders candidates, untaught.

One held-out item among 20 and among 100 that the user has not met. Every way to compare likelihoods is a figure.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from benches.harness import Bench, console
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from m6rec.assemble import Experiment, build
from m6rec.backbones.resolve import resolve_backbone
from m6rec.baselines.popularity import Popularity
from m6rec.data.candidates import SampledCandidates
from m6rec.data.histories import Queries
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.amazon import Amazon
from m6rec.data.sources.base import Source
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.store import Dataset
from m6rec.evaluation.evaluator import evaluate
from m6rec.recipe import read_recipe
from m6rec.tasks.encoding import SegmentEncoder
from m6rec.tasks.zeroshot.config import ZeroShotConfig
from m6rec.tasks.zeroshot.task import ZeroShot
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer

CANDIDATES = (20, 100)
QUERIES = 400
# Of so many users the dear rows are asked: sentences in other words, and a larger model.
FEWER = 150
PRETRAIN = (
    "task.prompt=zeroshot",
    "task.sources=[behaviour,items]",
    "task.infilling=0",
    "training.num_epochs=null",
)
VARIANTS = {
    "sum": ZeroShotConfig(calibration=0.0),
    "mean": ZeroShotConfig(length="mean", calibration=0.0),
    **{f"pmi_{weight}": ZeroShotConfig(calibration=weight) for weight in (0.25, 0.5, 1.0)},
    "mean_pmi_1.0": ZeroShotConfig(length="mean", calibration=1.0),
}
DEFAULT = "pmi_0.5"
METRIC = "ndcg@10[sampled={}]"


def run(bench: Bench) -> None:
    films = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    beauty = Amazon(Amazon.Config(path=str(bench.folder("amazon-beauty")), layout="llamarec"))
    plans: tuple[tuple[str, Source, PrepareConfig, int], ...] = (
        ("movies", films, PrepareConfig(split="leave-one-out"), 400),
        ("beauty", beauty, PrepareConfig(split="given", ties="file"), 420),
    )
    for name, source, config, seconds in plans:
        dataset = bench.prepare(source, f"zeroshot-{name}-data", config)
        found: dict[str, list[float]] = {}
        for seed in range(bench.seeds):
            words = (*PRETRAIN, f"training.max_cpu_seconds={seconds}")
            model = bench.pretrain(dataset, f"zeroshot-{name}", seed, words)
            part = bench.once(f"zeroshot-{name}-{seed}", lambda m=model, d=dataset, s=seed: compared(bench, d, m, s))
            for row, value in part.items():
                found.setdefault(f"{name}_{row}", []).append(value)
        bench.average(found)
        for size in CANDIDATES:
            metric = METRIC.format(size)
            bench.figures[f"{name}_{metric}"] = bench.figures[f"{name}_{DEFAULT}_{metric}"]
        bench.figures[f"{name}_over_popularity"] = (
            bench.figures[f"{name}_{METRIC.format(100)}"] / bench.figures[f"{name}_popularity_{METRIC.format(100)}"]
        )
    bench.protocol = {"queries": "a seeded sample of the test users", "candidates": "uniform, unmet", "per query": 1}


def compared(bench: Bench, dataset: Dataset, model: str, seed: int) -> dict[str, float]:
    """Return every row's figures on the same users and candidates."""
    queries = dataset.histories().queries("test")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(queries))[: 8 if bench.quick else QUERIES])
    queries = queries.take(chosen)
    rivals = SampledCandidates(max(CANDIDATES), seed).of(queries)
    words = [f"data={dataset.folder}", f"out={bench.work / 'zeroshot-none'}", f"seed={seed}", f"backbone.name={model}"]
    experiment = build(read_recipe("zeroshot", [*words, "task.max_events=12"]))
    popularity = Popularity()
    popularity.fit(dataset.histories().before("train"))
    scorers = told(experiment, queries, rivals)
    figures = measured([*scorers, popularity], queries, rivals, seed)
    some, few = queries.take(np.arange(min(FEWER, len(queries)))), rivals[:FEWER]
    dear = [*told(in_words(experiment), some, few, ("popularity_in_words",)), Similarity(dataset)]
    figures |= measured(dear, some, few, seed)
    same = measured([row for row in scorers if row.name in ("sum", DEFAULT)], some, few, seed)
    return figures | {f"fewer_{name}": value for name, value in same.items()}


def measured(rows: Sequence[Any], queries: Queries, rivals: NDArray[np.int32], seed: int) -> dict[str, float]:
    """Return each row's figures, and show them."""
    found = {}
    table = Table("row", *(escape(METRIC.format(size)) for size in CANDIDATES), title=f"{len(queries)} users")
    for row in rows:
        for size in CANDIDATES:
            metric = METRIC.format(size)
            means = evaluate(row, queries, candidates=rivals[:, :size], seed=seed).means()
            found[f"{row.name}_{metric}"] = means[metric]
        table.add_row(row.name, *(f"{found[f'{row.name}_{METRIC.format(size)}']:.4f}" for size in CANDIDATES))
    console.print(table)
    return found


def in_words(experiment: Experiment) -> Experiment:
    """Return the same task, whose sentences begin with the item's popularity in words."""
    config = replace(experiment.task.config, popularity=True)
    task = ZeroShot.build(config, experiment.task.material, experiment.backbone)
    return replace(experiment, task=task)


def told(
    experiment: Experiment, queries: Queries, rivals: NDArray[np.int32], names: tuple[str, ...] = tuple(VARIANTS)
) -> "list[Told]":
    """Read every sentence once, and return a scorer for every way to compare them (by default all of them)."""
    task = experiment.task.eval()
    users = [task.user(queries.history, int(user)) for user in queries.users]
    items = [[*queries.targets_of(query).tolist(), *rivals[query].tolist()] for query in range(len(queries))]
    named = [[(item, task.catalogue.texts[item]) for item in own] for own in items]
    measured = task.measured(experiment.backbone, users, named, alone=len(names) > 1)
    scorers = []
    for name in names:
        config = VARIANTS.get(name, VARIANTS["sum"])
        scores = [dict(zip(own, config.compare(*one), strict=True)) for own, one in zip(items, measured, strict=True)]
        scorers.append(Told(name, dict(zip(queries.users.tolist(), scores, strict=True))))
    return scorers


class Told:
    """Scores that are known already.

    Args:
        name: row name.
        scores: user -> item -> score.
    """

    def __init__(self, name: str, scores: dict[int, dict[int, float]]) -> None:
        self.name, self._scores = name, scores

    def score_candidates(self, queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        found = np.full(candidates.shape, -np.inf, dtype=np.float32)
        for row, user in enumerate(queries.users.tolist()):
            for column in np.flatnonzero(candidates[row] >= 0):
                found[row, column] = self._scores[user][int(candidates[row, column])]
        return found


class Similarity:
    """Untrained MiniLM: the cosine of an item and the mean of the last five."""

    name = "minilm"

    def __init__(self, dataset: Dataset, last: int = 5) -> None:
        self.last, self._renderer, self._dataset = last, Renderer(dataset.manifest.domain), dataset
        self._backbone = resolve_backbone("minilm")
        self._tokenizer = TextTokenizer(self._backbone.tokenizer)

    def score_candidates(self, queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        pasts = [queries.history.items[queries.history.of(int(user))] for user in queries.users]
        recent = [past[past >= 0][-self.last :] for past in pasts]
        wanted = np.unique(np.concatenate([*recent, candidates[candidates >= 0]]))
        texts = self._tokenizer.texts([self._renderer.item(self._dataset.item_record(int(item))) for item in wanted])
        vectors = SegmentEncoder(max_tokens=32).encode(self._backbone, texts, "items").numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
        for row, past in enumerate(recent):
            own = candidates[row] >= 0
            user = vectors[np.searchsorted(wanted, past)].sum(0)
            scores[row, own] = vectors[np.searchsorted(wanted, candidates[row, own])] @ user
        return scores
