"""Every tuner on the same three jobs with the same CPU time: ranking, retrieval, and a film's genre.

M6-Rec's table 8 (IFLYTEK accuracy, 10 M parameters): full .575, adapter .574, prompt .531, option .565, both .586.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benches.genres import Film, Genres, read_films
from benches.harness import Bench, console

from m6rec.assemble import Experiment, build, learnt
from m6rec.backbones.resolve import resolve_backbone
from m6rec.backbones.scenes import SceneBackbone
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.movielens import LatestSmall
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.pairs import evaluate_pairs
from m6rec.recipe import read_recipe
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.tasks.retrieval.data import RetrievalScorer
from m6rec.tasks.scenes import SceneTask
from m6rec.training.config import TrainingConfig
from m6rec.training.loop import TrainResult, train
from m6rec.tuners import TUNERS
from m6rec.tuners.state import trained_share

CPU_SECONDS = {"genres": 60, "ranking": 150, "retrieval": 90}
# The share of a budget that each try of a learning rate gets, on the genres of validation.
TRY = 0.25
TEST_PAIRS, TEST_USERS = 3000, 300
SOFT, DENSE = (3e-3, 1e-2, 3e-2), (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Arm:
    """One tuner in the comparison.

    Args:
        tuner: shelf name and settings.
        rates: learning rates to try.
    """

    tuner: Mapping[str, Any]
    rates: Sequence[float]

    def settings(self, num_classes: int) -> dict[str, Any]:
        """Return the tuner's settings for a task with so many classes (0 = none)."""
        answering = self.tuner["name"].startswith("option") and self.tuner.get("num_virtual_tokens") != 0
        return {**self.tuner, **({"num_classes": num_classes} if answering else {})}


ARMS = {
    "head_only": Arm({"name": "none"}, (1e-3,)),
    "full": Arm({"name": "full"}, (2e-5, 5e-5, 1.5e-4)),
    "lora": Arm({"name": "lora"}, DENSE),
    "prompt": Arm({"name": "prompt"}, SOFT),
    "prefix": Arm({"name": "prefix"}, SOFT),
    "p_tuning": Arm({"name": "p-tuning"}, DENSE),
    "ia3": Arm({"name": "ia3"}, (1e-3, 3e-3, 1e-2)),
    "adapter": Arm({"name": "option-adapter", "budget": 0.01, "num_virtual_tokens": 0, "num_classes": 0}, DENSE),
    "option": Arm({"name": "option"}, SOFT),
    "option_adapter": Arm({"name": "option-adapter", "budget": 0.01}, DENSE),
    "peterrec_serial": Arm({"name": "peterrec", "budget": 0.01}, DENSE),
    "peterrec_parallel": Arm({"name": "peterrec", "placement": "parallel", "budget": 0.01}, DENSE),
    "iak": Arm({"name": "iak", "bottleneck": 32}, DENSE),
}
QUICK = ("head_only", "option_adapter")


def run(bench: Bench) -> None:
    arms = {name: ARMS[name] for name in QUICK} if bench.quick else ARMS
    films, genres = read_films(bench.folder("ml-latest-small"))
    values: dict[str, list[float]] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for seed in range(bench.seeds):
        for name, arm in arms.items():
            job = partial(tell_genres, bench, films, len(genres), arm)
            lr = bench.once(f"{name}-rate", partial(best_rate, job, arm, bench))["lr"]
            found = bench.once(f"{name}-{seed}-genres", partial(genres_of, job, seed, lr))
            curves.setdefault(name, found.pop("curve"))
            found |= bench.once(f"{name}-{seed}-ranking", partial(rank, bench, arm, lr, seed))
            found |= bench.once(f"{name}-{seed}-retrieval", partial(retrieve, bench, arm, lr, seed))
            console.print(name, f"lr {lr:g}", {key: round(value, 4) for key, value in found.items()})
            for figure, value in found.items():
                values.setdefault(f"{figure}_{name}", []).append(value)
            bench.details.setdefault("rates", {})[name] = lr
    summarise(bench, values, curves)


def genres_of(job: Any, seed: int, lr: float) -> dict[str, Any]:
    """Return the test figures of genres, and the curve."""
    found, curve = job(seed, lr, CPU_SECONDS["genres"])
    return {**found, "curve": curve}


def summarise(bench: Bench, values: Mapping[str, list[float]], curves: Mapping[str, list[tuple[int, float]]]) -> None:
    """Write means, spreads, differences between arms, and the curves."""
    bench.average(values)
    for name, curve in curves.items():
        bench.figures[f"steps_to_95_{name}"] = float(steps_to(curve, 0.95))
    if not bench.quick:
        difference = np.subtract(values["ranking_auc_option_adapter"], values["ranking_auc_full"])
        bench.figures["option_adapter_minus_full_auc"] = float(difference.mean())
        # Where option tuning passes what prompt tuning ends at, in steps of prompt tuning's own.
        goal = curves["prompt"][-1][1]
        passed = [step for step, loss in curves["option"] if loss <= goal]
        if passed:
            bench.figures["option_steps_over_prompt_steps"] = passed[0] / curves["prompt"][-1][0]
    bench.details["curves"] = dict(curves)
    bench.protocol = {
        "cpu_seconds": CPU_SECONDS,
        "genres": "films with one genre; 75 / 5 / 20 % by film; validation log loss picks the rate, once for all",
        "ranking": f"rating of 4 or more by time, words only (no number head), {TEST_PAIRS} test pairs",
        "retrieval": f"retrieval-flat, untuned items, 5-core, leave-one-out, {TEST_USERS} users, full ranking",
        "rates": {name: list(arm.rates) for name, arm in ARMS.items()},
    }
    if bench.json:
        draw(curves, bench.json.with_suffix(".png"))


def best_rate(job: Any, arm: Arm, bench: Bench) -> dict[str, float]:
    """Return the learning rate that gets furthest on the genres of validation in a part of the time, by one seed."""
    if len(arm.rates) == 1 or bench.quick:
        return {"lr": arm.rates[0]}
    losses = {lr: min(loss for _, loss in job(0, lr, TRY * CPU_SECONDS["genres"])[1]) for lr in arm.rates}
    return {"lr": min(losses, key=lambda lr: losses[lr])}


def tell_genres(
    bench: Bench, films: Sequence[Film], num_genres: int, arm: Arm, seed: int, lr: float, cpu_seconds: float
) -> tuple[dict[str, float], list[tuple[int, float]]]:
    """Train on genres; return test figures and the validation loss after every so many steps."""
    settings = arm.settings(num_genres)
    kind = TUNERS.load(settings.pop("name"))
    torch.manual_seed(seed)
    tuned = kind(kind.Config(**settings)).attach(resolve_backbone("minilm", None))
    task = Genres(films, num_genres, tuned, seed)
    config = limits(bench, TrainingConfig(lr=lr, head_lr=1e-3, seed=seed, evaluate_every=5), cpu_seconds)
    config = replace(config, evaluate_first=True, select_on="log_loss", select_lowest=True)
    judge = partial(task.judge, tuned, "valid")
    # A kernel for everything is a scene too: its divergence is paid through this.
    learnt_task = SceneTask(task) if isinstance(tuned, SceneBackbone) else task
    result = train(learnt_task, tuned, config, fresh(bench), evaluate=lambda _: judge())
    share = trained_share(tuned)
    test = {"genre_accuracy": task.judge(tuned, "test")["accuracy"], "trained_share": share.trained / share.total}
    return test, curve(result)


def rank(bench: Bench, arm: Arm, lr: float, seed: int) -> dict[str, float]:
    """Return the ranking AUC of words alone: with the statistics as numbers all tuners would look the same."""
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    dataset = bench.prepare(source, f"by-time-{seed}", PrepareConfig(split="temporal", seed=seed))
    words = ["task.threshold=4", "task.numbers=false", "task.history_dropout=0.5"]
    experiment = trained(bench, "ranking", arm.settings(2), dataset.folder, lr, seed, words)
    pairs = experiment.task.pairs("test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(pairs))[:TEST_PAIRS])[: 40 if bench.quick else None]
    found = evaluate_pairs(RankingScorer(experiment.task, experiment.backbone, "test"), pairs.take(chosen)).means()
    return {"ranking_auc": found["auc"]}


def retrieve(bench: Bench, arm: Arm, lr: float, seed: int) -> dict[str, float]:
    """Return NDCG@10 of users as texts through the tuned backbone, whose positions are all scored over the catalogue.

    Items are the untuned backbone's vectors under a tower that all arms learn: reading them anew in every step costs
    ten times what the users do, and nobody learns anything in the time.
    """
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    dataset = bench.prepare(source, f"next-{seed}", PrepareConfig(seed=seed, k_core=5))
    # What is counted beside the language model would be the same for everybody.
    words = ["task.neighbours.cooccurrence=0", "task.neighbours.text=0"]
    words += ["task.item_vectors=cached", "task.item_region=source", "task.item_readout=mean", "task.whiten=256"]
    words += ["task.negatives=catalogue", "task.logq=false", "task.item_tokens=24"]
    words += ["task.item_layers=1", "task.item_tokens=8"] if bench.quick else []
    experiment = trained(bench, "retrieval-flat", arm.settings(0), dataset.folder, lr, seed, words)
    queries = dataset.histories().queries("test")
    queries = queries.take(np.sort(np.random.default_rng(0).permutation(len(queries))[:TEST_USERS]))
    found = evaluate(RetrievalScorer(experiment.task, experiment.backbone), queries, seed=seed).means()
    return {"retrieval_ndcg@10": found["ndcg@10"]}


def trained(
    bench: Bench, recipe: str, tuner: Mapping[str, Any], data: Path, lr: float, seed: int, words: Sequence[str]
) -> Experiment:
    """Train a recipe with one tuner for its CPU time."""
    settings = [f"tuner.{key}={value}" for key, value in tuner.items()]
    out = fresh(bench)
    cache = bench.work / "cache"  # the tuners read the same tokens
    cache.mkdir(exist_ok=True)
    (out / "cache").symlink_to(cache, target_is_directory=True)
    read = read_recipe(recipe, [f"data={data}", f"out={out}", f"seed={seed}", *settings, *words])
    experiment = build(read)
    config = limits(bench, replace(read.training.without_evaluation(), lr=lr), CPU_SECONDS[read.task["name"]])
    train(learnt(experiment), experiment.backbone, config, Path(read.out))
    experiment.task.finish(experiment.backbone)
    return experiment


def limits(bench: Bench, config: TrainingConfig, cpu_seconds: float) -> TrainingConfig:
    """Return a training that ends with its CPU time; a quick one after two steps."""
    if bench.quick:
        return replace(config, num_epochs=None, max_steps=2, save_every=None)
    return replace(config, num_epochs=None, max_cpu_seconds=cpu_seconds, save_every=None)


def fresh(bench: Bench) -> Path:
    """Return a run folder that nobody has used."""
    bench.work.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="tuned-", dir=bench.work))


def curve(result: TrainResult) -> list[tuple[int, float]]:
    """Return (step, validation log loss) of every evaluation."""
    return [(row["step"], row["evaluation"]["log_loss"]) for row in result.history if "evaluation" in row]


def steps_to(curve: Sequence[tuple[int, float]], share: float) -> int:
    """Return the steps after which ``share`` of all that the loss ever falls has fallen."""
    start, best = curve[0][1], min(loss for _, loss in curve)
    return next(step for step, loss in curve if loss <= start - share * (start - best))


def draw(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Write the convergence on genres as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=160)
    axes = figure.add_subplot()
    for name, points in curves.items():
        style = "--" if name in ("full", "head_only") else "-"
        axes.plot(*zip(*points, strict=True), style, label=name, linewidth=1.4)
    axes.set(xlabel="steps of 32 films", ylabel="validation log loss", title="genre of a film")
    axes.legend(fontsize=7, ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
