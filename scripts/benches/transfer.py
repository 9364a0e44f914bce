"""PeterRec's setting: a network that has read what users did with some items names items of another kind.

The catalogue is cut into source and target items: ml-latest-small at random (70/30), the sample world into shop and
video. A body is pretrained to name every user's next source item. Then 60 % of the users have labels, the target items
that they took. Of the others nothing is known on that side: 10 % end trainings and choose learning rates, 30 % are the
test. An arm reads a user's latest source items and [EOS], and learns a softmax over all target items from all labels,
20 % or 5 % of them. With the first seed it tries every rate on validation; the best epoch is kept. All arms of one seed
share body, users and labels. Time plays no part: a user's source events may come after the target ones.

Without --data only the sample world is studied.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from benches.harness import Bench, console
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from m6rec.backbones.base import Backbone
from m6rec.backbones.causal import CausalBackbone
from m6rec.backbones.items import item_batch, item_tokenizer
from m6rec.baselines.next_item import ItemNetwork, NextItemBaseline, NextItemConfig
from m6rec.baselines.nextitnet import BackboneNetwork, NextItNet, NextItNetConfig
from m6rec.baselines.popularity import Popularity
from m6rec.baselines.sequences import recent_rows
from m6rec.baselines.sparse import item_counts
from m6rec.baselines.stopping import mean_ndcg, train_until_plateau
from m6rec.data.histories import Histories, Queries
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.sources.world import World, WorldConfig
from m6rec.tuners import TUNERS
from m6rec.tuners.base import Tuner
from m6rec.tuners.bottleneck import Bottleneck
from m6rec.tuners.inserted import InsertedTuner, Wrapper
from m6rec.tuners.peterrec import PeterRecConfig

USERS = {"train": 0.6, "valid": 0.1, "test": 0.3}
SHARES = {"": 1.0, "_20%": 0.2, "_5%": 0.05}
RATES = (1e-3, 3e-3, 1e-2)
LENGTH, WIDTH, UNITS, RANK, VIRTUAL, DROPOUT = 60, 64, 8, 4, 16, 0.2
PRETRAINING_EPOCHS, EPOCHS, PATIENCE, BATCH = 40, 60, 6, 32


def run(bench: Bench) -> None:
    results: dict[str, dict[str, list[float]]] = {}
    for data, cut in datasets(bench).items():
        for body in bodies(1 if bench.quick else PRETRAINING_EPOCHS):
            title, rates = f"transfer{data}{body.suffix}", {}
            found = results.setdefault(title, {})
            for seed in range(bench.seeds):
                study = bench.once(f"{title}-{seed}", partial(one_study, body, cut, seed, bench.quick, rates))
                rates = study["rates"]
                for row, value in study["figures"].items():
                    found.setdefault(row, []).append(value)
                console.print(table(title, found))
            bench.details[title] = {"rates": rates, "seeds": found}
    for title, found in results.items():
        bench.figures |= {f"{title}_{name}": value for name, value in figures(found).items()}
    bench.protocol = {"candidates": "all target items", "users": USERS, "length": LENGTH, "rates": RATES}


# ---- data: what everybody did with the source items, what some did with the target items


@dataclass(frozen=True)
class Split:
    """One division of items and users.

    Args:
        source: every user's events with source items, which are numbered from 0.
        target: every user's events with target items, numbered from 0.
        users: of training, validation and test.
        order: places of the training labels in ``target``, shuffled: a share of them is its beginning.
    """

    source: Histories
    target: Histories
    users: dict[str, NDArray[np.int32]]
    order: NDArray[np.int64]

    def labels(self, share: float) -> Histories:
        keep = np.zeros(self.target.num_events, dtype=np.bool_)
        keep[self.order[: max(1, round(share * len(self.order)))]] = True
        return self.target.select(keep)

    def queries(self, part: str) -> Queries:
        """Ask for all target items of a part's users, of whom nothing is known on that side."""
        nothing = self.target.select(np.zeros(self.target.num_events, dtype=np.bool_))
        places, events = self.target.events_of(self.users[part])
        offsets = np.r_[0, np.cumsum(np.bincount(places, minlength=len(self.users[part])))].astype(np.int64)
        return Queries(nothing, self.users[part], offsets, self.target.items[events])


def datasets(bench: Bench) -> dict[str, Callable[[int], tuple[Histories, NDArray[np.bool_]]]]:
    """Return name -> seed -> all events, and which items are source."""
    config = WorldConfig(users=150, items=300, dialogues=0) if bench.quick else WorldConfig(dialogues=0)
    world = bench.prepare(World(config), "world", PrepareConfig())
    in_shop = np.array([key.startswith("S") for key in world.items["key"][:]])
    found: dict[str, Any] = {"_world": lambda seed: (world.histories(), in_shop)}
    if bench.data is None:
        console.print("no --data: the sample world alone")
        return found
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    movies = bench.prepare(source, "movies", PrepareConfig(k_core=0 if bench.quick else 5)).histories()
    return {"": lambda seed: (movies, np.random.default_rng(seed).random(movies.num_items) < 0.7), **found}


def divide(events: Histories, is_source: NDArray[np.bool_], seed: int) -> Split:
    """Cut items into source and target, and the users who have both into three parts."""
    source, target = only(events, is_source), only(events, ~is_source)
    rng = np.random.default_rng(seed)
    both = rng.permutation(np.flatnonzero((np.diff(source.offsets) > 0) & (np.diff(target.offsets) > 0)))
    cuts = np.round(np.cumsum(list(USERS.values()))[:-1] * len(both)).astype(int)
    users = dict(zip(USERS, np.split(both.astype(np.int32), cuts), strict=True))
    return Split(source, target, users, rng.permutation(target.events_of(users["train"])[1]))


def only(events: Histories, chosen: NDArray[np.bool_]) -> Histories:
    """Return the events with chosen items, which are numbered anew."""
    kept = events.select((events.items >= 0) & chosen[events.items])
    items = (np.cumsum(chosen) - 1)[kept.items].astype(np.int32)
    return replace(kept, items=items, splits=np.zeros_like(kept.splits), num_items=int(chosen.sum()))


# ---- bodies: what is pretrained


@dataclass(frozen=True)
class Body:
    """What is pretrained.

    Args:
        suffix: how its figures' names end.
        kind: what builds and trains it.
        config: its settings.
        matrices: those that LoRA changes.
        others: further tuners of the shelf that work on it, as they are.
    """

    suffix: str
    kind: type[NextItemBaseline]
    config: NextItemConfig
    matrices: tuple[str, ...]
    others: tuple[str, ...]


class SmallGPT2(NextItemBaseline):
    """A two-layer GPT-2 over item ids."""

    name, Config = "gpt2", NextItemConfig

    def build(self, num_items: int) -> ItemNetwork:
        sizes = {"vocab_size": num_items + 1, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
        sizes["n_positions"] = LENGTH + 1 + VIRTUAL  # room for what prompt tuning puts in front
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT)
        model = GPT2LMHeadModel(GPT2Config(**sizes, **drops, bos_token_id=None, eos_token_id=None))
        return BackboneNetwork(CausalBackbone(model, item_tokenizer(num_items), self.name), num_items)


def bodies(epochs: int) -> tuple[Body, ...]:
    # Of few users many must say when to stop: with a tenth of them chance stops the pretraining.
    stopping = {"max_epochs": epochs, "patience": 5, "holdout": 0.5}
    training: dict[str, Any] = {"max_length": LENGTH, "learning_rate": 4e-3, "bf16": True, **stopping}
    nextitnet = NextItNetConfig(width=WIDTH, dilations=(1, 4, 1, 4), dropout=DROPOUT, **training)
    virtual = ("prompt", "p-tuning", "prefix")
    return (
        Body("", NextItNet, nextitnet, ("taps",), ("ln-tuning", "bitfit")),
        Body(
            "_gpt2", SmallGPT2, NextItemConfig(**training), ("c_attn", "c_proj", "c_fc"), ("ln-tuning", "ia3", *virtual)
        ),
    )


# ---- arms: what is tuned


class OwnSkip(Wrapper):
    """The parallel patch as the authors' code has it: with a skip of its own, so that it starts as another model."""

    def __init__(self, base_layer: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__(base_layer)
        self.bottleneck = bottleneck

    def forward(self, states: Tensor) -> Tensor:
        added: Tensor = states + self.bottleneck(states)
        return self.base_layer(states) + added


class NoSkip(OwnSkip):
    """A serial patch without its skip, as in a public re-implementation: all that was learnt must pass the patch."""

    def forward(self, states: Tensor) -> Tensor:
        passed: Tensor = self.bottleneck(self.base_layer(states))
        return passed


class OddPatches(InsertedTuner):
    """Patches that m6rec does not offer; they start at random, as the authors' do."""

    Config, method = PeterRecConfig, "odd-patches"

    def __init__(self, wrapper: type[OwnSkip], seed: int) -> None:
        super().__init__(PeterRecConfig(bottleneck=UNITS, seed=seed))
        self.wrapper = wrapper

    def insert(self, backbone: Backbone) -> Backbone:
        for sites in backbone.sites():
            behind = (*sites.attention, *sites.feed_forward)
            for path in behind if self.wrapper is NoSkip else [span.first for span in sites.spans]:
                patch = Bottleneck(backbone.hidden_size, UNITS, nn.functional.gelu)
                for linear in (patch.down, patch.up):
                    nn.init.trunc_normal_(linear.weight, std=0.02)
                self.put(backbone, path, lambda base_layer, patch=patch: self.wrapper(base_layer, patch))
        return backbone


def shelf(name: str, **settings: Any) -> Tuner:
    kind = TUNERS.load(name)
    tuner: Tuner = kind(kind.Config(**settings))
    return tuner


def arms(body: Body, seed: int) -> dict[str, Callable[[], Tuner]]:
    """Return what makes every arm's tuner; ``no_pretraining`` gets an untrained body."""
    patch = {"bottleneck": UNITS, "seed": seed}
    others = {name.replace("-", "_"): partial(shelf, name) for name in body.others}
    return {
        "full": lambda: shelf("full"),
        "no_pretraining": lambda: shelf("full"),
        "head_only": lambda: shelf("none"),
        "serial_2mp": lambda: shelf("peterrec", placement="2mp-serial", **patch),
        "serial_1mp": lambda: shelf("peterrec", placement="1mp-serial", **patch),
        "parallel": lambda: shelf("peterrec", placement="parallel", **patch),
        "parallel_published": lambda: OddPatches(OwnSkip, seed),
        "no_skip": lambda: OddPatches(NoSkip, seed),
        "lora": lambda: shelf("lora", rank=RANK, targets=body.matrices, seed=seed),
        **others,
    }


# ---- the study: every arm on one split


class Reader(nn.Module):
    """A tuned body that reads [items ..., EOS], and a new softmax on the state of [EOS].

    The softmax starts as the popularity of the labels: else few labels would only be a race to learn that.

    Args:
        backbone: tuned.
        rows: ``[num_users, length]`` each user's latest source items.
        labels: what the softmax will learn from.
    """

    def __init__(self, backbone: Backbone, rows: Tensor, labels: Histories) -> None:
        super().__init__()
        self.backbone, self.rows = backbone, rows
        self.head = nn.Linear(backbone.hidden_size, labels.num_items)
        nn.init.zeros_(self.head.weight)
        self.head.bias.data = torch.from_numpy(item_counts(labels)).float().log1p()
        self.end = backbone.tokenizer.convert_tokens_to_ids("[EOS]")

    def forward(self, users: NDArray[np.integer]) -> Tensor:
        """Return ``[n, num_items]`` logits."""
        rows = self.rows[torch.from_numpy(users)]
        batch = item_batch(rows[:, : int((rows >= 0).sum(1).max())], self.end)
        logits: Tensor = self.head(self.backbone(batch)[torch.arange(batch.size), batch.keep.sum(1) - 1])
        return logits

    @torch.no_grad()
    def score(self, queries: Queries) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = self(queries.users).numpy()
        return scores


def as_loaded(baseline: NextItemBaseline) -> Backbone:
    """Return a trained body as a folder of it would give it: the control tokens start as the mean of its items."""
    backbone = baseline.network.backbone
    loaded: Backbone = type(backbone)(backbone.model, item_tokenizer(baseline.network.num_items), backbone.name)
    return loaded


class Study:
    """One body, one split, every arm.

    Args:
        body: what is pretrained.
        split: items, users and labels.
        seed: of weights and batches.
        quick: one epoch at one rate with all labels.
    """

    def __init__(self, body: Body, split: Split, seed: int, quick: bool) -> None:
        self.body, self.split, self.seed = body, split, seed
        self.shares, self.rates, self.epochs = ({"": 1.0}, RATES[:1], 1) if quick else (SHARES, RATES, EPOCHS)
        rows = recent_rows(split.source, np.arange(split.source.num_users), LENGTH)
        self.rows = torch.from_numpy(rows)

    def run(self, rates: dict[str, float]) -> dict[str, float]:
        """Return NDCG@10 on the test users by arm, and how much each trains.

        Args:
            rates: each arm's learning rate; one that is not known yet is found and written here.
        """
        baseline = self.body.kind(replace(self.body.config, seed=self.seed))
        baseline.fit(self.split.source)
        torch.manual_seed(self.seed)
        untrained, pretrained = baseline.build(self.split.source.num_items).backbone, as_loaded(baseline)
        found: dict[str, float] = {}
        for end, share in self.shares.items():
            labels, counts = self.split.labels(share), Popularity()
            counts.fit(labels)
            found[f"popularity_ndcg@10{end}"] = mean_ndcg(counts.score, self.split.queries("test"))
            for arm, tuner in arms(self.body, self.seed).items():
                start = untrained if arm == "no_pretraining" else pretrained
                tried = [rates[arm + end]] if arm + end in rates else self.rates
                best = max((self.tune(tuner(), start, labels, rate) for rate in tried), key=lambda one: one[0])
                _, rates[arm + end], reader = best
                found[f"{arm}_ndcg@10{end}"] = mean_ndcg(reader.score, self.split.queries("test"))
                found[f"{arm}_parameters"] = sum(p.numel() for p in reader.backbone.parameters() if p.requires_grad)
        return found

    def tune(self, tuner: Tuner, body: Backbone, labels: Histories, rate: float) -> tuple[float, float, Reader]:
        """Tune a copy of a body and a new head until validation stops rising; return its NDCG@10, the rate, both."""
        torch.manual_seed(self.seed)
        frozen = copy.deepcopy(body).requires_grad_(False)
        reader = Reader(tuner.attach(frozen), self.rows, labels)
        optimizer = torch.optim.AdamW([p for p in reader.parameters() if p.requires_grad], lr=rate)
        rng, valid = np.random.default_rng(self.seed), self.split.queries("valid")
        log = train_until_plateau(
            reader,
            optimizer,
            lambda: run_epoch(reader, optimizer, labels, rng),
            lambda: mean_ndcg(reader.score, valid),
            metric="ndcg@10",
            max_epochs=self.epochs,
            patience=PATIENCE,
            decays=0,
        )
        return max(log.values), rate, reader


def run_epoch(reader: Reader, optimizer: torch.optim.Optimizer, labels: Histories, rng: np.random.Generator) -> float:
    """Step once over all users with labels; every label counts the same. Return the mean loss."""
    users, total = rng.permutation(np.flatnonzero(np.diff(labels.offsets))), 0.0
    for chosen in np.array_split(users, max(1, len(users) // BATCH)):
        places, events = labels.events_of(chosen)
        likelihood = torch.log_softmax(reader(chosen), dim=-1)
        loss = -likelihood[torch.from_numpy(places), torch.from_numpy(labels.items[events]).long()].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(events)
    return total / labels.num_events


def one_study(body: Body, cut: Any, seed: int, quick: bool, rates: dict[str, float]) -> dict[str, Any]:
    """Return one seed's figures and the learning rates, of which the first seed finds all."""
    rates = dict(rates)
    return {"figures": Study(body, divide(*cut(seed), seed), seed, quick).run(rates), "rates": rates}


# ---- what is said of it


def figures(found: dict[str, list[float]]) -> dict[str, float]:
    """Return every row's mean over seeds; for arms also the mean difference to full tuning and its standard error."""
    means: dict[str, float] = {}
    for row, values in found.items():
        means[row] = float(np.mean(values))
        arm, at, end = row.partition("_ndcg@10")
        if at and arm != "full":
            difference = np.subtract(values, found[f"full_ndcg@10{end}"])
            means[f"{arm}_minus_full{end}"] = float(difference.mean())
            if len(values) > 1:
                means[f"{arm}_minus_full{end}_se"] = float(difference.std(ddof=1) / np.sqrt(len(values)))
    return means


def table(title: str, found: dict[str, list[float]]) -> Table:
    means = figures(found)
    ends = [end for end in SHARES if f"full_ndcg@10{end}" in found]
    shown = Table("arm", "parameters", *(f"ndcg@10{end} (- full)" for end in ends), title=title, box=None)
    for arm in dict.fromkeys(row.partition("_ndcg@10")[0] for row in found if "_ndcg@10" in row):
        differences = [means.get(f"{arm}_minus_full{end}", 0.0) for end in ends]
        values = [means[f"{arm}_ndcg@10{end}"] for end in ends]
        cells = (f"{value:.4f} ({less:+.4f})" for value, less in zip(values, differences, strict=True))
        shown.add_row(arm, f"{means.get(f'{arm}_parameters', 0):.0f}", *cells)
    return shown
