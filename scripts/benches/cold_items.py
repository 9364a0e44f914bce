"""New items on MovieLens latest-small, the sample world and Amazon Beauty: what is known of one after no judgement,
after its first five, ten, fifteen?

A third of the items with enough judgements is tested on, a part chosen by; nobody's model ever saw them. A yes is a
rating of 4 or more, a click among what was shown, or (Beauty) an event beside a sampled unmet item. Ours begins with
what the closed form expects and reads the items' text alone; its control has the texts shuffled. Beauty has no times:
there an item's first judgements are drawn by chance.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from benches.harness import Bench, console
from numpy.typing import NDArray
from rich.table import Table

from m6rec.backbones.resolve import resolve_backbone
from m6rec.coldstart.baselines.closed import WeighedClosedForms
from m6rec.coldstart.baselines.cvar import CVAR
from m6rec.coldstart.baselines.dcn import DCN
from m6rec.coldstart.baselines.deepfm import DeepFM
from m6rec.coldstart.baselines.meta_embedding import MetaEmbedding
from m6rec.coldstart.episodes import Episodes
from m6rec.coldstart.item_graph import ItemGraph, ItemGraphConfig
from m6rec.coldstart.item_net import ItemNet
from m6rec.coldstart.item_phases import METRICS, PHASES, ItemPhases, Phase, PhaseConfig, Rows
from m6rec.coldstart.item_tasks import Facts, TaskCutter
from m6rec.coldstart.item_training import LearnConfig, WarmUp, from_rows, from_tasks, learn
from m6rec.coldstart.known import catalogue_states
from m6rec.coldstart.traits import Attributes
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.amazon import Amazon
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.sources.world import World
from m6rec.data.store import Dataset
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer

WIDTH, COLUMNS = 48, 64
NAMES: dict[Phase, str] = {"cold": "cold", "warm-a": "a", "warm-b": "b", "warm-c": "c"}
Scores = Callable[[Phase], NDArray[np.float64]]
FEW = ("deepfm", "emerg", "closed_forms_weighed", "ours", "ours_shuffled_text")
"""Arms on the other datasets: MovieLens has them all."""

QUICK = ("meta_embedding", "cvar", "ours", "ours_shuffled_text")


def run(bench: Bench) -> None:
    parts = {"movies": (movies, ARMS), "world": (world, FEW), "beauty_sampled": (beauty, FEW)}
    for name, (prepare, arms) in parts.items():
        arms = [arm for arm in arms if arm in QUICK or not bench.quick]
        dataset, threshold = prepare(bench)
        texts = read(bench, dataset)
        found = [
            bench.once(
                f"cold-items-{name}-{seed}", partial(one_seed, bench, name, dataset, threshold, texts, arms, seed)
            )
            for seed in range(bench.seeds)
        ]
        collect(bench, name, found)
        show(name, found)
        bench.details[name] = found
    for rival in ("closed_form", "ours_shuffled_text"):
        values = [bench.figures[f"ours_minus_{rival}_{NAMES[phase]}"] for phase in PHASES]
        bench.figures[f"ours_minus_{rival}"] = min(values)
    bench.protocol = {"phases": vars(PhaseConfig()), "yes": "rating >= 4; a click; an event among sampled items"}


def movies(bench: Bench) -> tuple[Dataset, float | None]:
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    return bench.prepare(source, "cold-items-movies", PrepareConfig()), 4.0


def world(bench: Bench) -> tuple[Dataset, float | None]:
    return bench.prepare(World(World.Config()), "cold-items-world", PrepareConfig()), None


def beauty(bench: Bench) -> tuple[Dataset, float | None]:
    source = Amazon(Amazon.Config(path=str(bench.folder("amazon-beauty")), layout="llamarec"))
    return bench.prepare(source, "cold-items-beauty", PrepareConfig(ties="file")), None


def read(bench: Bench, dataset: Dataset) -> torch.Tensor:
    """Return every item's text as the frozen backbone reads it, in its principal directions, about one in size.

    Each direction is scaled by the root of its spread: with all of it the first ones, with none of it (whitening)
    the noise of the last ones would outweigh the others; validation likes what lies between.
    """
    backbone = resolve_backbone("foundation" if bench.quick else "minilm")
    renderer = Renderer(dataset.manifest.domain)
    words = [renderer.item(record) for record in dataset.item_records()]
    states = catalogue_states(backbone, TextTokenizer(backbone.tokenizer), words, 1, bench.work / "states")[:, 0]
    parts, spreads, _ = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    texts = parts[:, :WIDTH] * spreads[:WIDTH].sqrt()
    return texts / texts.square().sum(1).mean().sqrt()


class Arms:
    """The rivals over one split of one dataset, each trained and warmed up in the same way.

    Args:
        bench: quick or not.
        phases: the split.
        facts: attributes and texts.
        num_users: how many there are.
        seed: of everything.
    """

    def __init__(self, bench: Bench, phases: ItemPhases, facts: Facts, num_users: int, seed: int) -> None:
        self.phases, self.num_users, self.seed = phases, num_users, seed
        self.config = LearnConfig(num_epochs=1 if bench.quick else 6, seed=seed)
        fields = Facts(facts.attributes, facts.fields)
        shown = {
            "fields": fields,
            "text": facts.by_text(),
            "shuffled": facts.by_text().shuffled(seed),
            "both": facts,
        }
        self.cutters = {name: TaskCutter(phases, each, num_users) for name, each in shown.items()}
        self.notes: dict[str, Any] = {}

    def closed(self, kind: int, attributes: bool = True, users: bool = True) -> Scores:
        """Return a row that needs no training.

        Args:
            kind: 0 = of ratings, 1 = of labels.
            attributes: whether they say what a new item is worth.
            users: whether a user's level is added.
        """
        expectation = self.cutters["fields"].expectations[kind]
        form, priors = expectation.closed, expectation.priors.double().numpy()
        rows = self.phases.rows
        values = (rows.values, rows.labels)[kind]

        def scores(phase: Phase) -> NDArray[np.float64]:
            known, asked = self.phases.known("test", phase), self.phases.queries("test")
            start = priors if attributes else np.zeros_like(priors)
            levels = form.item_levels(rows.users[known], rows.items[known], values[known], start)
            return form.scores(rows.users[asked], rows.items[asked], levels) if users else levels[rows.items[asked]]

        return scores

    def warmed(self, name: str, net: ItemNet, shown: str) -> Scores:
        cutter = self.cutters[shown]
        warm = WarmUp.chosen(net, cutter, self.config.inner_lr)
        self.notes.setdefault(name, {})["warm_up_steps"] = dict(warm.steps)
        return lambda phase: warm.scores(cutter, "test", phase)

    def learn(self, name: str, net: ItemNet, shown: str, step: Any, trained: Any = None) -> None:
        figures = learn(net, step, trained or net.parameters(), self.cutters[shown], self.config)
        self.notes.setdefault(name, {}).setdefault("validation", []).append(figures)

    def rows(self, name: str, kind: Callable[..., ItemNet], dropped: float = 0.0) -> Scores:
        """Return a predictor that is trained from rows; its new items start with an empty one."""
        net = kind(self.cutters["fields"].facts, self.num_users)
        self.learn(name, net, "fields", from_rows(net, self.config, dropped))
        return self.warmed(name, net, "fields")

    def made(self, name: str, kind: type[MetaEmbedding] | type[CVAR]) -> Scores:
        """Return a predictor that is trained from rows, and then a way to make a new item's row."""
        net = kind(self.cutters["fields"].facts, self.num_users)
        self.learn(name, net, "fields", from_rows(net, self.config))
        step = net.step if isinstance(net, CVAR) else from_tasks(net, self.config)
        self.learn(name, net, "fields", step, list(net.made()))
        return self.warmed(name, net, "fields")

    def published(self, name: str, graph: Any) -> Scores:
        """Return EmerG: pre-trained from rows with one graph, then by item tasks with whichever graph."""
        net = ItemGraph(self.cutters["fields"].facts, self.num_users, ItemGraphConfig(graph=graph))
        self.learn(name, net, "fields", from_rows(net, self.config))
        self.learn(name, net, "fields", from_tasks(net, self.config))
        return self.warmed(name, net, "fields")

    def ours(self, name: str, shown: str, kind: Callable[..., ItemNet] = ItemGraph, closed: bool = True) -> Scores:
        """Return a predictor by item tasks alone, on top of the closed form."""
        net = kind(self.cutters[shown].facts, self.num_users, with_closed_form=closed)
        self.learn(name, net, shown, from_tasks(net, self.config))
        return self.warmed(name, net, shown)


ARMS: dict[str, Callable[[Arms, str], Scores]] = {
    "deepfm": lambda arms, name: arms.rows(name, DeepFM),
    "dcn": lambda arms, name: arms.rows(name, DCN),
    "dropoutnet": lambda arms, name: arms.rows(name, DeepFM, dropped=0.5),
    "meta_embedding": lambda arms, name: arms.made(name, MetaEmbedding),
    "cvar": lambda arms, name: arms.made(name, CVAR),
    "emerg_published": lambda arms, name: arms.published(name, "untrained"),
    "emerg": lambda arms, name: arms.published(name, "made"),
    "global_graph": lambda arms, name: arms.published(name, "global"),
    "ours": lambda arms, name: arms.ours(name, "text"),
    "ours_shuffled_text": lambda arms, name: arms.ours(name, "shuffled"),
    "ours_fields_for_text": lambda arms, name: arms.ours(name, "fields"),
    "ours_text_and_fields": lambda arms, name: arms.ours(name, "both"),
    "ours_without_closed_form": lambda arms, name: arms.ours(name, "text", closed=False),
    "closed_forms_weighed": lambda arms, name: arms.ours(name, "fields", WeighedClosedForms),
    "ours_without_graph": lambda arms, name: arms.ours(name, "text", DeepFM),
}
CLOSED: dict[str, Callable[[Arms], Scores]] = {
    "item_mean": lambda arms: arms.closed(0, attributes=False, users=False),
    "item_and_user": lambda arms: arms.closed(0, attributes=False),
    "closed_form_of_ratings": lambda arms: arms.closed(0),
    "closed_form_of_labels": lambda arms: arms.closed(1),
}


def one_seed(
    bench: Bench,
    name: str,
    dataset: Dataset,
    threshold: float | None,
    texts: torch.Tensor,
    arms: Any,
    seed: int,
) -> dict[str, Any]:
    """Return every arm's figures in every phase."""
    episodes = Episodes.of(dataset, threshold, num_negatives=1, seed=seed)
    if episodes.times is None:  # Beauty knows each user's order alone
        episodes = replace(episodes, times=np.random.default_rng(seed).permutation(len(episodes.items)))
    rows = Rows.of(episodes)
    phases = ItemPhases.of(rows, PhaseConfig(shots=1, min_queries=2) if bench.quick else PhaseConfig(), seed)
    records = list(dataset.item_records())
    columns = Attributes.of(records, COLUMNS)
    rivals = Arms(bench, phases, Facts.of(columns(records), columns.names, texts), dataset.num_users, seed)
    found = {arm: judged(phases, make(rivals)) for arm, make in CLOSED.items()}
    for arm in arms:
        torch.manual_seed(seed)
        part = f"cold-items-{name}-{seed}-{arm}"
        found |= bench.once(part, lambda arm=arm: {arm: judged(phases, ARMS[arm](rivals, arm)), "notes": rivals.notes})
    return {
        "figures": {arm: each for arm, each in found.items() if arm != "notes"},
        "notes": found.get("notes", {}),
        "items": {part: len(items) for part, items in phases.items.items()},
        "queries": len(phases.queries("test")),
    }


def judged(phases: ItemPhases, scores: Scores) -> dict[str, dict[str, float]]:
    return {NAMES[phase]: phases.judge("test", scores(phase)) for phase in PHASES}


def collect(bench: Bench, name: str, found: list[dict[str, Any]]) -> None:
    """Write every arm's figures, and what ours has over its rivals, seed by seed."""
    metrics = dict(zip(METRICS, ("auc", "within_auc"), strict=True))
    arms, values = found[0]["figures"], {}
    prefix = "" if name == "movies" else f"{name}_"
    for phase in NAMES.values():
        for arm in arms:
            for metric, short in metrics.items():
                values[f"{name}_{phase}_{short}_{arm}"] = [each["figures"][arm][phase][metric] for each in found]
        # Of the two closed forms the better one, phase by phase and seed by seed.
        both = [values[f"{name}_{phase}_auc_closed_form_of_{kind}"] for kind in ("ratings", "labels")]
        values[f"{name}_{phase}_auc_closed_form"] = np.max(both, axis=0).tolist()
        ours = np.array(values[f"{name}_{phase}_auc_ours"])
        for rival in ("closed_form", "ours_shuffled_text"):
            apart = ours - np.array(values[f"{name}_{phase}_auc_{rival}"])
            values[f"{prefix}ours_minus_{rival}_{phase}"] = apart.tolist()
    bench.average(values)


def show(name: str, found: list[dict[str, Any]]) -> None:
    table = Table(title=f"{name}: pooled AUC, and within the item", box=None)
    table.add_column("")
    for phase in NAMES.values():
        table.add_column(phase, justify="right")
    for arm in found[0]["figures"]:
        cells = [[each["figures"][arm][phase] for each in found] for phase in NAMES.values()]
        means = [[np.mean([row[metric] for row in rows]) for metric in METRICS] for rows in cells]
        table.add_row(arm, *(f"{pooled:.4f} {within:.4f}" for pooled, within in means))
    console.print(table)
