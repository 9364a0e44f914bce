"""One process, one backbone, six tasks: what their adapters cost in memory, and that a mixed batch mixes nothing up."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from benches.harness import Bench
from torch import nn

from m6rec.api import Recommender, load
from m6rec.assemble import open_runs
from m6rec.backbones.resolve import resolve_backbone
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.world import World, WorldConfig
from m6rec.data.store import Dataset
from m6rec.text.batch import collate
from m6rec.text.prompt import Prompt, UserText
from m6rec.text.tokenize import TextTokenizer
from m6rec.tuners.pool import AdapterPool

# Two steps each: this is about memory and mixing, not about what they have learnt.
RECIPES = {
    "ranking": ("task.max_events=4", "task.max_branches=4"),
    "explanation": ("task.max_events=4",),
    "title": ("task.max_events=4", "task.max_branches=4"),
    "query": ("task.max_events=4",),
    "description": ("task.max_events=4", "task.max_branches=2"),
    "retrieval-flat": ("task.max_events=4",),
}
STEPS = ("training.max_steps=2", "training.batch_size=2")


def run(bench: Bench) -> None:
    prepare(World(WorldConfig(users=300, items=300, dialogues=5)), bench.work / "small-world", PrepareConfig())
    dataset = Dataset.open(bench.work / "small-world")
    name = "foundation" if bench.quick else "minilm"
    folders = []
    for recipe, words in RECIPES.items():
        chosen = [f"backbone.name={name}", *unjudged(recipe), *words, *STEPS]
        folders.append(Path(bench.train(recipe, dataset, recipe, 0, chosen).recipe.out))
    memory(bench, folders, name)
    mixing(bench, folders, name, [str(title) for title in dataset.items["title"][:12]])
    bench.protocol = {"adapters": len(folders), "backbone": name, "memory": "bytes of parameters, each counted once"}


def unjudged(recipe: str) -> tuple[str, ...]:
    """Return words that leave validation out, where a recipe has it."""
    if recipe == "retrieval-flat":
        return ()
    words = ("training.evaluate_every=null", "training.select_on=null", "training.select_lowest=false")
    return (*words, "training.evaluate_first=false") if recipe == "ranking" else words


def memory(bench: Bench, folders: Sequence[Path], name: str) -> None:
    """Count what six tasks hold beside their one backbone, and what they would hold with one each."""
    base = resolve_backbone(name)
    alone = held([base])
    shared = open_runs(folders, base)
    everything = held([base, *(part for run in shared for part in (run.backbone, run.task))])
    adapters = held([base, *(run.backbone for run in shared)])
    bench.figures |= {
        "backbone_megabytes": alone / 2**20,
        "six_adapters_megabytes": (adapters - alone) / 2**20,
        "six_adapters_over_backbone": adapters / alone,
        "six_tasks_over_backbone": everything / alone,
        "separate_over_shared": (len(folders) * alone + adapters - alone) / adapters,
    }


def held(modules: Sequence[nn.Module]) -> int:
    """Return the bytes of all parameters and buffers, memory that several share counted once."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def mixing(bench: Bench, folders: Sequence[Path], name: str, titles: Sequence[str]) -> None:
    """Compare a batch in which every row has its own adapter with the same rows one by one."""
    pool = AdapterPool(resolve_backbone(name))
    for folder in folders:
        pool.load(folder.name, folder)
    text, prompt = TextTokenizer(pool.backbone.tokenizer), Prompt("retrieval-source")
    renderer = open_runs(folders[:1], pool.backbone)[0].renderer
    events = [{"item": {"title": title}} for title in titles]
    layouts = [prompt.layout(renderer, UserText(events=events[: 1 + row])) for row in range(len(titles))]
    batch = collate(text.layouts(layouts), text.pad_id)
    adapters = [folders[row % len(folders)].name for row in range(len(titles))]
    with torch.no_grad():
        mixed = pool.forward(batch, adapters)
        rows = [pool.forward(batch.take(torch.tensor([row])), [adapter])[0] for row, adapter in enumerate(adapters)]
        bare = pool.backbone(batch)
    kept = batch.keep[..., None]
    bench.figures["mixed_max_difference"] = float(((mixed - torch.stack(rows)).abs() * kept).max())
    bench.figures["adapters_change_states_by"] = float(((mixed - bare).abs() * kept).mean())
    together, alone = load(*folders), [load(folder) for folder in folders]
    bench.figures["same_answers"] = float(np.mean([same(together, one, titles) for one in alone]))


def same(together: Recommender, alone: Recommender, titles: Sequence[str]) -> bool:
    """Whether a recommender of many runs answers as the run alone does."""
    kind = alone.team.work(alone.run)
    history, item, settings = list(titles[:3]), titles[4], {"max_new_tokens": 8}
    if kind == "ranking":
        return together.rank(history, list(titles)) == alone.rank(history, list(titles))
    if kind == "retrieval":
        return together.retrieve(history, 10) == alone.retrieve(history, 10)
    if kind == "explanation":
        return together.explain(history, item, **settings).text == alone.explain(history, item, **settings).text
    about = item if kind == "description" else None
    made, expected = (rec.create(history, kind, item=about, **settings) for rec in (together, alone))
    return [one.answers for one in made] == [one.answers for one in expected]
