"""MovieLens latest-small, users apart: like or dislike (4 stars or more) from ten events, after 0 to 256 sentences.

Three groups of users share nothing but the films: half of them wrote the text that the domain's language model is
pretrained on (what they liked and disliked is in it), from a quarter the labelled sentences are drawn, and the last
quarter is asked. TALLRec-7B on its own MovieLens split: AUC .672 / .675 / .720 at 16 / 64 / 256.
"""

import itertools
import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from benches.harness import Bench, PartOf, console
from benches.zeroshot import PRETRAIN
from numpy.typing import NDArray

from m6rec.assemble import build
from m6rec.config import plain
from m6rec.data.histories import Judgements
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.base import Source
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.store import Dataset
from m6rec.metrics.ranking import auc
from m6rec.recipe import read_recipe
from m6rec.tasks.zeroshot.task import ZeroShotScorer
from m6rec.training.loop import train

SHOTS = (16, 64, 256)
TUNERS = ("lora", "option-adapter", "ia3")
PAIRS = 1500
DOMAIN, TEACHERS, ASKED = (0, 1), 2, 3
WORDS = ("task.threshold=4", "task.max_events=10", "task.min_events=10", "training.num_epochs=null")
STEPS = 40


def run(bench: Bench) -> None:
    films = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    domain = bench.prepare(Apart(films, DOMAIN), "fewshot-domain-data", PrepareConfig(split="given"))
    others = bench.prepare(Apart(films, (TEACHERS, ASKED)), "fewshot-data", PrepareConfig(split="given"))
    found: dict[str, list[float]] = {}
    for seed in range(bench.seeds):
        model = bench.pretrain(domain, "fewshot-domain", seed, (*PRETRAIN, "training.max_cpu_seconds=270"))
        plans = [("none", 0), *itertools.product(TUNERS, SHOTS[:1] if bench.quick else SHOTS)]
        for tuner, shots in plans:
            name = "auc@0" if not shots else f"{tuner}_auc@{shots}"
            part = bench.once(
                f"fewshot-{name}-{seed}",
                lambda t=tuner, k=shots, m=model, s=seed: {"auc": taught(bench, others, m, t, k, s)},
            )
            console.print(f"{name}: {part['auc']:.4f}")
            found.setdefault(name, []).append(part["auc"])
        found.setdefault("rate_auc", []).append(rate(bench, domain, others, seed))
    bench.average(found)
    for shots in SHOTS[:1] if bench.quick else SHOTS:
        bench.figures[f"auc@{shots}"] = bench.figures[f"{TUNERS[0]}_auc@{shots}"]
    bench.protocol = {"split": "users apart", "history": "ten events", "yes": "4 stars or more", "pairs": PAIRS}


def taught(bench: Bench, dataset: Dataset, model: str, tuner: str, shots: int, seed: int) -> float:
    """Learn so many sentences of some users, and return the AUC on others'."""
    name = "zeroshot" if not shots else "fewshot"
    out = bench.work / f"fewshot-{tuner}-{shots}-{seed}"
    words = [f"data={dataset.folder}", f"out={out}", f"seed={seed}", f"backbone.name={model}", f"tuner.name={tuner}"]
    recipe = read_recipe(name, [*words, *WORDS, f"training.max_steps={2 if bench.quick else STEPS}"])
    experiment = build(recipe)
    task, backbone = experiment.task, experiment.backbone
    everything = task.pairs("train")
    if shots:
        task.teach(some(everything.take(of_group(dataset, everything, TEACHERS)), shots, seed))
        train(task, backbone, recipe.training, out)
    asked = some(everything.take(of_group(dataset, everything, ASKED)), 60 if bench.quick else PAIRS, seed=0)
    bench.recipe = plain(recipe)
    return auc(asked.labels, ZeroShotScorer(task.eval(), backbone.eval()).score_pairs(asked))


def rate(bench: Bench, domain: Dataset, others: Dataset, seed: int) -> float:
    """Return the AUC of each film's smoothed share of yes among the users whose text the model has read."""
    seen, asked = domain.judgements("train", 4), others.judgements("train", 4)
    asked = some(asked.take(of_group(others, asked, ASKED)), 60 if bench.quick else PAIRS, seed=0)
    keys, average = domain.items["key"][:], float(seen.labels.mean())
    yes = np.bincount(seen.items, seen.labels, minlength=len(keys))
    count = np.bincount(seen.items, minlength=len(keys))
    rates = dict(zip(keys, (yes + 5 * average) / (count + 5), strict=True))
    names = others.items["key"][:]
    return auc(asked.labels, np.array([rates.get(names[item], average) for item in asked.items.tolist()]))


def of_group(dataset: Dataset, pairs: Judgements, wanted: int) -> NDArray[np.int64]:
    """Return the pairs of one group's users that come after ten events."""
    members = np.array([group(key) == wanted for key in dataset.users["key"][:]])
    return np.flatnonzero(members[pairs.users] & (pairs.lengths >= 10))


def some(pairs: Judgements, count: int, seed: int) -> Judgements:
    return pairs.take(np.sort(np.random.default_rng(seed).permutation(len(pairs))[:count]))


def group(user: str) -> int:
    """Return which quarter of the users somebody is of."""
    return zlib.crc32(f"fewshot {user}".encode()) % 4


class Apart(PartOf):
    """A source with some of the users, all of whose events are for training.

    Args:
        source: the whole.
        groups: those that are kept.
    """

    def __init__(self, source: Source, groups: tuple[int, ...]) -> None:
        super().__init__(source)
        self._groups = groups

    def events(self) -> Iterator[pa.Table]:
        for table in self._source.events():
            part = table.filter(pa.array([group(user) in self._groups for user in table["user"].to_pylist()]))
            yield part.append_column("split", pa.array(["train"] * len(part), pa.string()))

    def users(self) -> Iterator[pa.Table]:
        return iter(())
