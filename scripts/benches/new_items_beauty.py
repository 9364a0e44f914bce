"""Amazon Beauty with a tenth of the items held out of training and validation: found by their text alone?"""

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from benches.harness import Bench, PartOf, console
from numpy.typing import NDArray

from m6rec.assemble import Experiment
from m6rec.baselines.popularity import Popularity
from m6rec.data.histories import Queries
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.amazon import Amazon
from m6rec.data.sources.base import Source
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.report import Report
from m6rec.evaluation.result import Evaluation
from m6rec.tasks.retrieval.data import RetrievalScorer

SHARE = 0.1
# The price of new items: the same model with less of the probability given to them.
CAUTIOUS = (0.02, 0.05)
METRICS = ("ndcg@10", "recall@10")


def run(bench: Bench) -> None:
    values: dict[str, list[float]] = {}
    for seed in range(bench.seeds):
        source = Amazon(Amazon.Config(path=str(bench.folder("amazon-beauty")), layout="llamarec"))
        dataset = bench.prepare(
            HeldOutItems(source, SHARE, seed), f"beauty-held-out-{seed}", PrepareConfig(split="given", ties="file")
        )
        # Who launches a tenth of a catalogue knows that it is a tenth; validation cannot have seen it.
        words = [f"task.neighbours.new_share={SHARE}", "training.max_cpu_seconds=1500"]
        experiment = bench.train("retrieval", dataset, "new-items", seed, words)
        for row in evaluations(experiment):
            new = row.item_counts[row.targets] == 0
            for part, kept in (("new", row.where(new)), ("warm", row.where(~new))):
                for metric in METRICS:
                    values.setdefault(f"{row.name}_{metric}_{part}", []).append(kept.means()[metric])
    bench.average(values)
    knn = max(bench.figures[f"content_knn_{last}_ndcg@10_new"] for last in ContentKNN.LASTS)
    bench.figures["content_knn_ndcg@10_new"] = knn
    bench.figures["ours_over_content_knn"] = bench.figures["ours_ndcg@10_new"] / max(knn, 1e-12)
    bench.figures["warm_kept"] = bench.figures["ours_ndcg@10_warm"] / max(
        bench.figures["without_new_ndcg@10_warm"], 1e-12
    )


def evaluations(experiment: Experiment) -> list[Evaluation]:
    """Evaluate ours, ours with the new items off the shelf, popularity, and untrained vectors."""
    histories = experiment.dataset.histories()
    queries, train = histories.queries("test"), histories.before("train")
    popularity = Popularity()
    popularity.fit(train)
    vectors = experiment.task.catalogue.vectors.numpy()
    scorer = RetrievalScorer(experiment.task, experiment.backbone)
    rows = [
        scorer,
        *(cautious(experiment, share) for share in CAUTIOUS),
        Without(scorer, experiment.task.catalogue.ids < 0),
        popularity,
        *(ContentKNN(vectors, last) for last in ContentKNN.LASTS),
    ]
    results = [evaluate(row, queries, train=train) for row in rows]
    console.print(Report(results, title="new and warm items together", ours="ours").table())
    return results


def cautious(experiment: Experiment, share: float) -> RetrievalScorer:
    """Return the run's scorer with another expectation of how much goes to new items."""
    task = copy.copy(experiment.task)
    task.config = replace(task.config, neighbours=replace(task.config.neighbours, new_share=share))
    return RetrievalScorer(task, experiment.backbone, f"ours_share_{share}")


class ContentKNN:
    """Untrained text vectors: the mean of the last items', compared by cosine."""

    LASTS = (1, 5)

    def __init__(self, vectors: NDArray[np.float32], last: int) -> None:
        self.name, self.last = f"content_knn_{last}", last
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def score(self, queries: Queries) -> NDArray[np.float32]:
        history = queries.history
        users = np.zeros((len(queries), self.vectors.shape[1]), dtype=np.float32)
        for row, user in enumerate(queries.users.tolist()):
            items = history.items[history.of(user)][-self.last :]
            users[row] = self.vectors[items].sum(0)
        return users @ self.vectors.T


class Without:
    """Another scorer with some items off the shelf: what the others would get if those did not exist."""

    name = "without_new"

    def __init__(self, scorer: RetrievalScorer, removed: NDArray[np.bool_]) -> None:
        self.scorer, self.removed = scorer, removed

    def score(self, queries: Queries) -> NDArray[np.float32]:
        scores = self.scorer.score(queries)
        scores[:, self.removed] = -1e9
        return scores


class HeldOutItems(PartOf):
    """A source whose training and validation events miss a random share of the items.

    Args:
        source: with a split of its own.
        share: of the items.
        seed: of the choice.
    """

    def __init__(self, source: Source, share: float, seed: int) -> None:
        super().__init__(source)
        keys = [key for table in source.items() for key in table["item"].to_pylist()]
        chosen = np.random.default_rng(seed).permutation(len(keys))[: round(share * len(keys))]
        self._held_out = pa.array([keys[index] for index in chosen])

    def events(self) -> Iterator[pa.Table]:
        for table in self._source.events():
            new = pc.is_in(table["item"].cast(pa.string()), value_set=self._held_out.cast(pa.string()))
            yield table.filter(pc.or_(pc.invert(new), pc.equal(table["split"].cast(pa.string()), "test")))
