"""What a language model of a domain costs, and what it gives: nats per held-out title, then three tasks on top of each.

Every model gets the same CPU-seconds. Nats of a whole title compare models whatever their word pieces are; MiniLM's
lower-case alphabet has a little less to say.
"""

from functools import partial
from typing import Any

from benches.harness import Bench, console

from m6rec.assemble import open_experiment
from m6rec.backbones.foundation import foundation_folder, read_card
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.world import World, WorldConfig
from m6rec.data.store import Dataset

_DENSE = ["task.infilling=0", "task.sourced=0"]
_PRUNED = "backbone.vocabulary=used"
MODELS: dict[str, tuple[str, list[str]]] = {
    "small": ("pretrain-small", []),
    "minilm_pruned": ("pretrain", [_PRUNED]),
    "minilm": ("pretrain", []),
    "minilm_pruned_dense": ("pretrain", [_PRUNED, *_DENSE]),
    "small_prefix": ("pretrain-small", ["backbone.shape.model_type=bert"]),
}
BUDGETS = (60, 120)
MEASURED = 150
# What stands under the tasks: MiniLM as it is, adapted, a small model of the same cost, and the one in the package.
BASES = ("minilm as it is", "minilm_pruned", "small", "foundation")
TASKS: dict[str, tuple[list[str], str]] = {
    "retrieval": (["training.num_epochs=4", "training.patience=null"], "ndcg@10"),
    "ranking": (["training.max_cpu_seconds=90"], "auc"),
    "explanation": (["training.max_cpu_seconds=90", "task.max_events=6"], "nats_per_answer"),
}
QUICK_WORLD = WorldConfig(users=80, items=300, dialogues=20)


def run(bench: Bench) -> None:
    folder = bench.work / "world"
    if not (folder / "dataset.yaml").is_file():
        prepare(World(QUICK_WORLD if bench.quick else WorldConfig()), folder, PrepareConfig())
    dataset = Dataset.open(folder)
    for budget in BUDGETS[:1] if bench.quick else BUDGETS:
        for name in ("small",) if bench.quick else MODELS:
            found = [
                bench.once(f"{name}-{budget}-{seed}", partial(cost, bench, dataset, name, budget, seed))
                for seed in range(bench.seeds)
            ]
            for figure in ("nats_per_title", "nats_per_token"):
                bench.average({f"{name}_{figure}@{budget}s": [each[figure] for each in found]})
    shipped = read_card(foundation_folder())
    bench.figures |= {f"foundation_{name}": shipped["figures"]["test"][name] for name in ("nats_per_title",)}
    bench.figures["foundation_cpu_seconds"] = shipped["cpu_seconds"]
    for base in ("foundation",) if bench.quick else BASES:
        for task, (_, figure) in TASKS.items():
            found = [
                bench.once(f"{base}-{task}-{seed}", partial(gain, bench, dataset, base, task, seed))
                for seed in range(bench.seeds)
            ]
            bench.average({f"{base.replace(' ', '_')}_{task}_{figure}": [each[figure] for each in found]})


def cost(bench: Bench, dataset: Dataset, name: str, budget: int, seed: int) -> dict[str, float]:
    """Pretrain one model for so many CPU-seconds and measure it on what the users of the test chose."""
    recipe, words = MODELS[name]
    limits = ["training.num_epochs=null", f"training.max_cpu_seconds={budget}", "training.save_every=null"]
    experiment = bench.train(recipe, dataset, f"{name}-{budget}", seed, [*words, *limits])
    figures = experiment.task.measure(experiment.backbone, "test", 20 if bench.quick else MEASURED, seed)
    console.print(name, budget, figures)
    assert figures is not None
    return figures


def gain(bench: Bench, dataset: Dataset, base: str, task: str, seed: int) -> dict[str, Any]:
    """Train a task on a base for a fixed cost, and measure it on the test."""
    words, figure = TASKS[task]
    under = {"minilm as it is": "minilm", "foundation": "foundation"}.get(base)
    name = under or str(bench.work / f"{base}-{BUDGETS[-1]}-{seed}")
    run = f"{base.replace(' ', '-')}-{task}"
    experiment = bench.train(task, dataset, run, seed, [f"backbone.name={name}", *words])
    if task == "explanation":
        figures = experiment.task.measure(experiment.backbone, "test", 40 if bench.quick else None, seed) or {}
    else:
        compared = bench.compare(open_experiment(bench.work / f"{run}-{seed}"), (), 1, run)
        figures = compared.report.rows[0].means()
    console.print(base, task, figures[figure])
    return {figure: figures[figure]}
