"""New users on MovieLens latest-small: how well is a user known after no event, one, two, five, ten and twenty?

A fifth of the users is tested on and a tenth chosen by; nobody else's model ever saw them. Each one's first twenty
ratings are support, in time order; what is asked is what she rated next, the same at every support size. Rating of 4 or
more is a yes. The closed forms come first, for a gain in pooled AUC may be no more than the user's level.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benches.harness import Bench, console
from numpy.typing import NDArray
from rich.table import Table

from m6rec.assemble import build
from m6rec.coldstart.conditioned import choose, tuner_words
from m6rec.coldstart.events import ColdBatch
from m6rec.coldstart.meta import TwoStage
from m6rec.coldstart.modulation import Structure
from m6rec.coldstart.online import Online
from m6rec.coldstart.support import curve
from m6rec.coldstart.users import ColdUsers
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.store import Dataset

MODULATED = "task.method=modulation"
CONTROLS = ("none", "film", "all", "random")
ARMS: dict[str, tuple[str, ...]] = {
    "two_stage": (),
    "two_stage_first_order": ("task.two_stage.second_order=false",),
    "two_stage_adapter": ("task.two_stage.part=adapter",),
    **{
        f"coldnas_{name}": (MODULATED, f"task.modulation.structure={name}")
        for name in ("none", "film", "all", "random")
    },
    "coldnas_searched": (MODULATED,),
    "coldnas_ladder_film": (MODULATED, "task.modulation.predictor=ladder", "task.modulation.structure=film"),
    "coldnas_ladder_searched": (MODULATED, "task.modulation.predictor=ladder"),
}
QUICK = ("two_stage", "coldnas_random", "coldnas_searched")
# The language model reads every asked item's words for every user: a small model, fewer events and questions, one pass.
LM = (
    *(MODULATED, "task.modulation.predictor=lm", "backbone.name=foundation", "training.num_epochs=1"),
    *("task.queries=3", "task.draws=2", "task.protocol.support=5", "task.protocol.max_queries=8", "training.lr=1e-3"),
    *("training.evaluate_every=null", "training.evaluate_first=false", "training.select_on=null"),
)
LM_GATES = (2, 4, 8)
SHOWN = ("within_user_auc", "auc", "ndcg@10", "mse")
RIDGES = (10.0, 30.0, 100.0, 300.0, 1000.0)
Curve = dict[int, dict[str, float]]


def run(bench: Bench) -> None:
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    dataset = bench.prepare(source, "cold-users-data", PrepareConfig())
    found = [bench.once(f"cold-users-{seed}", partial(one_seed, bench, dataset, seed)) for seed in range(bench.seeds)]
    values: dict[str, list[float]] = {}
    for each in found:
        for name, value in figures(each["curves"]).items():
            values.setdefault(name, []).append(value)
    bench.average(values)
    bench.details["seeds"] = found
    bench.protocol = {"data": dataset.manifest.card(), "users": found[0]["users"], "yes": "rating >= 4"}
    show(found)
    if bench.json:
        draw(found, bench.json.with_name(f"{bench.json.stem}-support.png"))


def one_seed(bench: Bench, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Return every arm's curve, and what the searches found."""
    curves, notes = {}, {}
    for arm in QUICK if bench.quick else ARMS:
        words = ARMS[arm]
        part = bench.once(f"cold-users-{seed}-{arm}", partial(one_arm, bench, dataset, seed, arm, words))
        curves |= part["curves"]
        notes |= part["notes"]
    language = bench.once(f"cold-users-{seed}-lm", partial(language_arms, bench, dataset, seed))
    return {"curves": curves | language["curves"], "notes": notes | language["notes"], "users": part["users"]}


def one_arm(bench: Bench, dataset: Dataset, seed: int, arm: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Train one arm; the first one also gives the rows that need no training of its kind."""
    words = ("task.threshold=4", *words, *(["backbone.name=foundation"] if bench.quick else []))
    share_states(bench.work, arm, seed)
    experiment = bench.train("cold-users", dataset, f"cold-users-{arm}", seed, words)
    task = experiment.task
    assert isinstance(task, ColdUsers)
    curves = {arm: curve_of(task, partial(task.predictions, experiment.backbone, "test"))}
    if arm == "two_stage":
        curves |= stages(task) | closed_forms(task)
        # Directions from joint training of all users that are learnt from; nothing but the inner loop at the test.
        untrained = build(experiment.recipe).task
        assert isinstance(untrained, ColdUsers)
        curves["joint_finetuned"] = curve_of(untrained, partial(untrained.predictions, experiment.backbone, "test"))
    notes = {}
    if task.found is not None:
        structure = task.found.structure
        notes[arm] = {"structure": str(structure), "collapsed": structure.is_collapsed, "gates": task.found.gates}
    return {
        "curves": curves,
        "notes": notes,
        "users": {part: len(task.users(part)) for part in ("train", "valid", "test")},
    }


def language_arms(bench: Bench, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Return the curves of ColdNAS on the language model: a structure an operation and a layer, and its controls."""

    def train(arm: str, *words: str) -> tuple[ColdUsers, Any]:
        share_states(bench.work, f"lm_{arm}", seed)
        found = bench.train("cold-users", dataset, f"cold-users-lm_{arm}", seed, words)
        assert isinstance(found.task, ColdUsers)
        return found.task, found.backbone

    conditioned = ("task.threshold=4", *LM, "tuner.name=conditioned")
    task, supernet = train("supernet", *conditioned, 'tuner.ops=["max+min+mul+add"]', "tuner.gated=true")
    structure = choose(supernet, LM_GATES, lambda: task.measure(supernet, "valid")["mse"])
    layers, rng = len(structure.gates), np.random.default_rng(seed)
    arms = {
        "none": ("task.threshold=4", *LM),
        "film": (*conditioned, tuner_words(Structure.film(layers))),
        "random": (*conditioned, tuner_words(Structure.random(layers, structure.size, rng))),
        "searched": (*conditioned, tuner_words(structure)),
    }
    curves = {"lm_closed_form": curve_of(task, partial(scored, task, "test", score=level))}
    for arm, words in arms.items():
        one, backbone = train(arm, *words)
        curves[f"lm_{arm}"] = curve_of(one, partial(one.predictions, backbone, "test"))
    return {
        "curves": curves,
        "notes": {"lm_searched": {"structure": str(structure), "collapsed": structure.is_collapsed}},
    }


def share_states(work: Path, arm: str, seed: int) -> None:
    """Lay the catalogue's states, once read, where the next run looks for them."""
    folder = work / f"cold-users-{arm}-{seed}" / "cache"
    for path in work.glob("cold-users-*/cache/states-*.safetensors"):
        if path.parent != folder:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)


def curve_of(task: ColdUsers, predict: Callable[[int], NDArray[np.floating]], part: str = "test") -> Curve:
    return curve(predict, task.users(part), task.config.protocol)


def scored(task: ColdUsers, part: str, size: int, score: Callable[[ColdBatch], torch.Tensor]) -> NDArray[np.float32]:
    """Return what ``score`` says of the queries, in stars."""
    mean, scale = task.known.units.tolist()
    with torch.no_grad():
        found = [score(batch)[batch.query.keep] for batch in task.asked(part, size)]
    return (torch.cat(found) * scale + mean).float().numpy()


def stages(task: ColdUsers) -> dict[str, Curve]:
    """Return the trained model without its events (the offline stage alone), and with them one by one (online)."""
    model, table = task.predictor, task.known.table
    assert isinstance(model, TwoStage)
    online = Online(model, table)

    def offline_alone(batch: ColdBatch) -> torch.Tensor:
        return model.predict(table, batch.query, model.prior(batch.profiles))

    def one_by_one(batch: ColdBatch) -> torch.Tensor:
        return online.predict(online.observe(online.newcomers(batch.profiles), batch.support), batch.query)

    arms = {"two_stage_offline": offline_alone, "two_stage_online": one_by_one}
    return {arm: curve_of(task, partial(scored, task, "test", score=score)) for arm, score in arms.items()}


def closed_forms(task: ColdUsers) -> dict[str, Curve]:
    """Return the rows without any training; the ridge's strength is chosen on validation users."""
    scores = {"item_mean": lambda batch: batch.query.base, "closed_form": level}
    found = {name: curve_of(task, partial(scored, task, "test", score=score)) for name, score in scores.items()}

    def loss(strength: float) -> float:
        valid = curve_of(task, partial(scored, task, "valid", score=partial(ridge, task, strength)), "valid")
        return float(np.mean([row["mse"] for row in valid.values()]))

    best = min(RIDGES, key=loss)
    return found | {"ridge": curve_of(task, partial(scored, task, "test", score=partial(ridge, task, best)))}


def level(batch: ColdBatch, strength: float = 5.0) -> torch.Tensor:
    """Item's level plus the user's own, shrunk."""
    support = batch.support
    missed = ((support.values - support.base) * support.keep).sum(1)
    return batch.query.base + (missed / (strength + support.num_kept))[:, None]


def ridge(task: ColdUsers, strength: float, batch: ColdBatch) -> torch.Tensor:
    """The closed form, and a ridge regression of each user's own from text and attributes to what it leaves."""
    table, support = task.known.table, batch.support
    centre = table.features(torch.arange(len(task.catalogue))).mean(0)

    def inputs(events: Any) -> torch.Tensor:
        own = (table.features(events.places) - centre) / strength**0.5
        ones = torch.full((*own.shape[:2], 1), 5.0**-0.5)
        return torch.cat([ones, own], dim=-1) * events.keep[..., None]

    known, asked = inputs(support), inputs(batch.query)
    kernel = known @ known.mT + torch.eye(known.shape[1])
    left = (support.values - support.base) * support.keep
    return batch.query.base + (asked @ known.mT @ torch.linalg.solve(kernel, left[..., None]))[..., 0]


def figures(curves: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Return what is claimed, and every arm's ends."""
    found = {}
    for arm, rows in curves.items():
        for size in rows:
            for metric in SHOWN:
                found[f"{arm}_{metric}_at_{size}"] = rows[size][metric]
    for size in curves["two_stage"]:
        own = curves["two_stage"][size]["within_user_auc"]
        for rival in ("closed_form", "ridge", "joint_finetuned"):
            found[f"within_user_minus_{rival}_at_{size}"] = own - curves[rival][size]["within_user_auc"]
    for form, size in (("coldnas", "20"), ("lm", "5")):
        searched, rival = (curves[f"{form}_{structure}"][size]["mse"] for structure in ("searched", "random"))
        found[f"{form}_searched_minus_random_mse_at_{size}"] = searched - rival
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print the mean curves."""
    for metric in SHOWN:
        sizes = list(found[0]["curves"]["two_stage"])
        table = Table(metric, *(f"after {size}" for size in sizes), box=None)
        for arm in found[0]["curves"]:
            shown = [size for size in sizes if size in found[0]["curves"][arm]]
            means = [np.mean([each["curves"][arm][size][metric] for each in found]) for size in shown]
            table.add_row(arm, *(f"{value:.4f}" for value in means))
        console.print(table)
    for each in found:
        console.print(each["notes"])


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw the figures within users against the support size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=160)
    axes = figure.add_subplot()
    for arm in ("closed_form", "ridge", "joint_finetuned", "two_stage", "coldnas_random", "coldnas_searched"):
        sizes = list(found[0]["curves"][arm])
        means = [np.mean([each["curves"][arm][size]["within_user_auc"] for each in found]) for size in sizes]
        axes.plot(sizes, means, marker="o", label=arm.replace("_", " "))
    axes.set(xlabel="known events of the user", ylabel="AUC within users", title="users who were never seen")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
