"""A kernel a scene (IAK) against one for all, a LoRA a scene, and scenes that mean nothing: does knowing the scene pay?

Ranking on the sample world, whose seasons, places and domains differ by construction, and on ml-latest-small by genre.
All arms of one seed see the same pairs for the same number of steps, and a scene's kernel, the shared one and a scene's
LoRA have about the same number of trained parameters. A *sham* partition has as many scenes of the same sizes, dealt at
random (items where the scene is the item's, else users): what it loses is the price of cutting the data, and what real
scenes win back is what they know. It is compared with a shared kernel on its own trees, for a tree holds one scene.

The question is about data, not about depth: the first two layers of all-MiniLM-L6-v2 read three times as many pairs in
the same time, and short histories as many again.

Without --data only the sample world is studied.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from benches.harness import Bench, console
from jaxtyping import Float, Int
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn

from m6rec.assemble import Experiment, build, learnt
from m6rec.backbones.base import Backbone
from m6rec.backbones.resolve import resolve_backbone
from m6rec.backbones.scenes import ActiveBackbone, SceneBackbone
from m6rec.config import plain
from m6rec.data.histories import Judgements
from m6rec.data.prepare import PrepareConfig
from m6rec.data.scenes import TIMES, SceneConfig, SceneRule
from m6rec.data.sources.base import Source
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.sources.world import World, WorldConfig
from m6rec.data.store import Dataset
from m6rec.metrics.calibration import log_losses
from m6rec.metrics.ranking import auc
from m6rec.recipe import read_recipe
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.text.batch import TokenBatch
from m6rec.training.loop import train
from m6rec.tuners.lora import LoraConfig, LoraTuner
from m6rec.tuners.pool import skeleton

PLACES = ("Kiruna, Sweden", "Bergen, Norway", "Lisbon, Portugal", "Kyoto, Japan", "Melbourne, Australia")
LAYERS, STEPS, PAIRS, BOTTLENECK, RANK = 2, 120, 2500, 16, 12
WORDS = (
    f"training.max_steps={STEPS}",
    "training.num_epochs=null",
    "training.batch_size=16",
    "training.evaluate_every=null",
    "training.evaluate_first=false",
    "training.select_on=null",
    "training.lr=1e-3",
)


@dataclass(frozen=True)
class System:
    """What splits a dataset into scenes.

    Args:
        scenes: the rule.
        words: of the recipe.
    """

    scenes: SceneConfig
    words: tuple[str, ...] = ("task.max_events=4",)

    @property
    def sham(self) -> SceneConfig:
        """The rule that reads the sham column."""
        return SceneConfig(f"{'item' if self.of_items else 'user'}.sham", self.scenes.scenes[:-1])

    @property
    def of_items(self) -> bool:
        return self.scenes.by.startswith("item.")


SYSTEMS = {
    "season": System(SceneConfig("time.season")),
    "domain": System(SceneConfig("item.category", ("Shop", "Video"))),
    "place": System(SceneConfig("user.place", PLACES)),
    "genre": System(
        SceneConfig("item.category", ("Drama", "Comedy", "Action")), ("task.threshold=4", "task.max_events=12")
    ),
}


@dataclass(frozen=True)
class Arm:
    """What is trained.

    Args:
        tuner: the recipe's; "none" = a LoRA a scene, put in by hand.
        sham: whether the scenes mean nothing.
        balanced: whether small scenes are drawn more often than they come.
    """

    tuner: str
    sham: bool = False
    balanced: bool = False


IAK = f"name: iak, bottleneck: {BOTTLENECK}"
ARMS = {
    "shared": Arm(f"{{{IAK}, scenes: [all]}}"),
    "kernels": Arm(f"{{{IAK}}}"),
    "balanced": Arm(f"{{{IAK}}}", balanced=True),
    "lora": Arm("{name: none}"),
    "sham_shared": Arm(f"{{{IAK}, scenes: [all]}}", sham=True),
    "sham": Arm(f"{{{IAK}}}", sham=True),
}


def run(bench: Bench) -> None:
    for name, system in SYSTEMS.items():
        if name == "genre" and bench.data is None:
            console.print("no --data: the sample world alone")
            continue
        if bench.quick and name != "domain":
            continue
        found: dict[str, list[float]] = {}
        for seed in range(bench.seeds):
            for figure, value in bench.once(f"{name}-{seed}", partial(study, bench, name, system, seed)).items():
                found.setdefault(figure, []).append(value)
            console.print(table(name, found))
        bench.details[name] = found
        for figure, values in found.items():
            bench.figures[f"scenes_{name}_{figure}"] = float(np.mean(values))
            if bench.seeds > 1 and "_minus_" in figure:
                bench.figures[f"scenes_{name}_{figure}_se"] = float(np.std(values, ddof=1) / np.sqrt(bench.seeds))
    bench.protocol = {"layers": LAYERS, "pairs": PAIRS, "bottleneck": BOTTLENECK, "rank": RANK, "words": list(WORDS)}


def study(bench: Bench, name: str, system: System, seed: int) -> dict[str, float]:
    """Return every arm's figures for one seed, and what knowing the scene is worth."""
    dataset, out = prepared(bench, name, system, seed), bench.work / f"{name}-{seed}"
    figures: dict[str, float] = {}
    for row, arm in ARMS.items():
        experiment = built(bench, dataset, out, system, arm, seed)
        result = train(learnt(experiment), experiment.backbone, experiment.recipe.training, out / row)
        bench.details.setdefault("cpu_seconds", {})[f"{name}_{row}_{seed}"] = result.cpu_seconds
        bench.recipe = plain(experiment.recipe)
        pairs = sample(experiment.task.pairs("test"), seed, bench.quick)
        scores = RankingScorer(experiment.task, experiment.backbone, "test").score_pairs(pairs)
        names = () if arm.sham else system.scenes.scenes
        figures |= {f"{row}_{metric}": value for metric, value in judged(pairs, scores, names).items()}
    for metric in ("auc", "log_loss"):
        real = figures[f"kernels_{metric}"] - figures[f"shared_{metric}"]
        sham = figures[f"sham_{metric}"] - figures[f"sham_shared_{metric}"]
        figures |= {f"kernels_minus_shared_{metric}": real, f"sham_minus_shared_{metric}": sham}
        figures[f"real_minus_sham_{metric}"] = real - sham
    return figures


# ---- data


def prepared(bench: Bench, name: str, system: System, seed: int) -> Dataset:
    """Return the system's dataset, with a column of sham scenes."""
    if name == "genre":
        source: Source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
        split = PrepareConfig(split="temporal", seed=seed)
    else:
        sizes = {"users": 200, "items": 300} if bench.quick else {"users": 1500, "items": 1200}
        source = World(WorldConfig(**sizes, dialogues=0, seed=seed))
        split = PrepareConfig(split="ratio", split_shares=(0.7, 0.1, 0.2), seed=seed)
    return bench.prepare(WithSham(source, system, seed), f"{name}-{seed}-data", split)


class WithSham:
    """A source whose items (or users, where the scene is not the item's) have a column ``sham``: a random scene.

    Args:
        source: the whole.
        system: a sham scene has as many items (users) as a real one. Moments are nobody's: all get equal shares.
        seed: of the deal.
    """

    def __init__(self, source: Source, system: System, seed: int) -> None:
        self._source, self._system, self._seed = source, system, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def items(self) -> Iterator[pa.Table]:
        return self._dealt(self._source.items()) if self._system.of_items else self._source.items()

    def users(self) -> Iterator[pa.Table]:
        return self._source.users() if self._system.of_items else self._dealt(self._source.users())

    def _dealt(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        table, scenes = pa.concat_tables(tables), self._system.scenes
        kind, _, column = scenes.by.partition(".")
        if kind == "time":
            numbers = np.arange(len(table)) % len(TIMES[column])
        else:
            rows = [{column: value} for value in table[column].to_pylist()]
            numbers = SceneRule(replace(scenes, by=f"item.{column}")).of_request(rows, {})
        names = np.array(scenes.scenes)[np.random.default_rng(self._seed).permutation(numbers)]
        yield table.append_column("sham", pa.array(names))


def shallow(bench: Bench) -> Path:
    """Return a folder with the first layers of MiniLM."""
    folder = bench.work / "backbone"
    if not folder.is_dir():
        backbone: Any = resolve_backbone("minilm")
        backbone.model.encoder.layer = backbone.model.encoder.layer[:LAYERS]
        backbone.model.config.num_hidden_layers = LAYERS
        backbone.model.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)
    return folder


def sample(pairs: Judgements, seed: int, quick: bool) -> Judgements:
    """Return the pairs of some users, about ``PAIRS``."""
    users, counts = np.unique(pairs.users, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(users))
    chosen = users[order[np.cumsum(counts[order]) <= (100 if quick else PAIRS)]]
    return pairs.take(np.flatnonzero(np.isin(pairs.users, chosen)))


# ---- arms


def built(bench: Bench, dataset: Dataset, out: Path, system: System, arm: Arm, seed: int) -> Experiment:
    """Return an arm, ready to train; all arms of a seed share their cached trees."""
    scenes = replace(system.sham if arm.sham else system.scenes, sampling="sqrt" if arm.balanced else "examples")
    words = [f"data={dataset.folder}", f"out={out}", f"backbone.name={shallow(bench)}", f"seed={seed}"]
    words += [f"tuner={arm.tuner}", f"scenes={json.dumps(plain(scenes))}", *WORDS, *system.words]
    recipe = read_recipe("ranking", [*words, "training.max_steps=3"] if bench.quick else words)
    experiment = build(recipe)
    if recipe.tuner["name"] == "none":
        experiment.backbone = LoraPerScene(experiment.backbone, scenes.scenes, seed)
    return experiment


class LoraPerScene(SceneBackbone):
    """A LoRA a scene around shared weights, all trained at once.

    Args:
        inner: the frozen backbone.
        scenes: their names.
        seed: of the start.
    """

    def __init__(self, inner: Backbone, scenes: Sequence[str], seed: int) -> None:
        super().__init__(inner)
        self.scenes = tuple(scenes)
        tuners = [LoraTuner(LoraConfig(rank=RANK, alpha=2.0 * RANK, seed=seed)) for _ in scenes]
        self.parts = nn.ModuleList(tuner.attach(skeleton(inner)) for tuner in tuners)

    def activate(self, scenes: Int[Tensor, " rows"]) -> ActiveBackbone:
        self.check(scenes)
        return ActiveLoras(self, scenes)


class ActiveLoras(ActiveBackbone):
    """Rows grouped by scene, each group under its scene's LoRA."""

    def __init__(self, inner: LoraPerScene, scenes: Int[Tensor, " rows"]) -> None:
        super().__init__(inner)
        self._scenes = scenes

    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Float[Tensor, "batch tokens hidden"]:
        scenes = self._scenes.expand(batch.size)
        groups = [(scenes == scene).nonzero()[:, 0] for scene in scenes.unique()]
        states = [self.inner.parts[int(scenes[rows[0]])](batch.take(rows), layers) for rows in groups]
        return torch.cat(states)[torch.cat(groups).argsort()]

    def penalty(self) -> Float[Tensor, ""]:
        return torch.zeros(())


# ---- figures


def judged(pairs: Judgements, scores: NDArray[np.float32], names: Sequence[str]) -> dict[str, float]:
    """Return AUC, log loss, and the AUC of every scene with at least a hundred pairs."""
    found = {"auc": auc(pairs.labels, scores), "log_loss": float(log_losses(pairs.labels, scores).mean())}
    for number, name in enumerate(names):
        rows = pairs.scenes == number
        if rows.sum() >= 100:
            found[f"auc_{name.partition(',')[0].lower()}"] = auc(pairs.labels[rows], scores[rows])
    return found


def table(system: str, found: Mapping[str, Sequence[float]]) -> Table:
    """Return the means over the seeds so far."""
    shown = Table("figure", "mean", "seeds", box=None, title=f"scenes by {system}", title_justify="left")
    for name, values in found.items():
        shown.add_row(name, f"{np.mean(values):.4f}", " ".join(f"{value:.4f}" for value in values))
    return shown
