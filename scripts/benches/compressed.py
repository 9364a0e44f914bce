"""What the benches of compression share: a ranking run on films, the requests it is asked, and their costs.

Knows no bench. The statistics do not reach the head as numbers here: with them every depth would look alike.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benches.harness import Bench
from numpy.typing import NDArray

from m6rec.assemble import Experiment
from m6rec.backbones.base import Backbone
from m6rec.compressors.cost import cpu_ms
from m6rec.data.features import features
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.store import Dataset
from m6rec.metrics.ranking import auc
from m6rec.tasks.ranking.data import RankingBatch, pair_statistics, ranking_batch
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.trees import slates
from m6rec.text.tokenize import TokenizedLayout
from m6rec.workflows.compression import COMPRESSION_FILE, compress_run

WORDS = ("task.threshold=4", "task.numbers=false", "task.history_dropout=0.5", "training.max_cpu_seconds=300")
# The last weights: the best by validation may be those before anything was learnt.
LAST = ("training.evaluate_every=null", "training.evaluate_first=false", "training.select_on=null")
SMALL_EXITS = ("training.max_cpu_seconds=130", "training.batch_size=2", "training.lr=4e-4", "training.head_lr=2e-3")
PAIRS, TIMED = 1000, 6


@dataclass(frozen=True)
class Request:
    """One tree: a user and candidates.

    Args:
        tree: in tokens.
        numbers: ``[candidates, features]``.
        labels: ``[candidates]`` 0 or 1.
    """

    tree: TokenizedLayout
    numbers: NDArray[np.float32]
    labels: NDArray[np.float32]


def ranking_run(bench: Bench, seed: int, recipe: str = "ranking") -> Experiment:
    """Return a ranking run on films by time, words alone.

    Args:
        bench: whose work folder.
        seed: of split and training.
        recipe: ``ranking``, or ``ranking-late`` for one with late interaction.
    """
    name = {"ranking": "plain", "ranking-late": "late"}[recipe]
    return bench.train(recipe, films(bench, seed), name, seed, [*WORDS, *LAST])


def films(bench: Bench, seed: int) -> Dataset:
    """Return the log of films, split by time."""
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    return bench.prepare(source, f"by-time-{seed}", PrepareConfig(split="temporal", seed=seed))


def compressed(bench: Bench, run: Path, method: str, name: str, words: Sequence[str] = ()) -> Path:
    """Compress a run, unless that is done."""
    out = bench.work / name
    quick = ["training.max_steps=2"] if bench.quick and method != "quantize" else []
    if not (out / COMPRESSION_FILE).is_file():
        compress_run(run, method, [f"out={out}", *words, *quick])
    return out


def requests(task: Ranking, split: Any, at_most: int) -> list[Request]:
    """Return the held-out pairs of a split as requests, drawn until they hold ``at_most`` pairs."""
    pairs, config = task.pairs(split), task.config
    statistics = pair_statistics(task.statistics_for(split), pairs, past_only=False)
    groups = slates(pairs, config.max_events, config.max_branches)
    chosen, held = [], 0
    for number in np.random.default_rng(0).permutation(len(groups)):
        if held >= at_most:
            break
        chosen.append(groups[number])
        held += len(groups[number].pairs)
    dataset, numbers = task.material.dataset, features(statistics)
    trees = task.writer.trees(
        chosen, pairs, statistics, dataset.event_record, dataset.user_record, task.catalogue.texts
    )
    return [
        Request(tree, numbers[slate.pairs], pairs.labels[slate.pairs])
        for slate, tree in zip(chosen, trees, strict=True)
    ]


def batch_of(task: Ranking, request: Request) -> RankingBatch:
    """Return one request as a batch."""
    return ranking_batch([request.tree], [request.numbers], None, task.tokenizer.pad_id)


@torch.no_grad()
def torch_answer(task: Ranking, backbone: Backbone, bf16: bool = False) -> Callable[[Request], NDArray[np.float32]]:
    """Return request -> probabilities through torch."""
    task.eval()

    def answer(request: Request) -> NDArray[np.float32]:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return task.logits(backbone, batch_of(task, request)).float().softmax(1)[:, 1].numpy()

    return answer


def quality(answer: Callable[[Request], NDArray[np.float32]], asked: Iterable[Request]) -> float:
    """Return the AUC over all candidates of all requests."""
    asked = list(asked)
    return auc(np.concatenate([request.labels for request in asked]), np.concatenate([answer(r) for r in asked]))


def ndcg(answer: Callable[[Request], NDArray[np.float32]], asked: Iterable[Request], cutoff: int = 10) -> float:
    """Return the mean NDCG of each request's candidates, over requests with both a yes and a no."""
    found = []
    for request in asked:
        if 0 < request.labels.sum() < len(request.labels):
            discounts = 1 / np.log2(np.arange(2, min(cutoff, len(request.labels)) + 2))
            gains = request.labels[np.argsort(-answer(request), kind="stable")][: len(discounts)]
            best = np.sort(request.labels)[::-1][: len(discounts)]
            found.append(float(gains @ discounts / (best @ discounts)))
    return float(np.mean(found))


def ms_a_request(
    answers: dict[str, Callable[[Request], NDArray[np.float32]]], asked: Sequence[Request], repeats: int = 7
) -> dict[str, float]:
    """Return the median CPU-milliseconds a request of each way to answer, on one thread, in turns."""
    typical = sorted(asked, key=lambda request: len(request.tree))
    chosen = [typical[int(place)] for place in np.linspace(0, len(typical) - 1, min(TIMED, len(typical)))]
    calls = {name: lambda answer=answer: [answer(request) for request in chosen] for name, answer in answers.items()}
    return {name: value / len(chosen) for name, value in cpu_ms(calls, repeats).items()}
