"""The sample world: `make demo`'s own numbers, and the ceiling that its true probabilities set."""

import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from benches.harness import Bench, console

from m6rec.assemble import open_experiment
from m6rec.commands.demo import run_demo
from m6rec.config import plain
from m6rec.workflows.comparison import Compared

METRICS = ("ndcg@10", "recall@10")
SEARCHED = {"itemknn": 8, "markov": 8, "sasrec": 6}
# Best first; every two neighbours have to be apart.
LADDER = ("oracle", "ours", "itemknn", "sasrec", "popularity")


def run(bench: Bench) -> None:
    settings: dict[str, Any] = {}
    worlds = []
    for seed in range(bench.seeds):
        worlds.append(bench.once(f"world-{seed}", partial(one_world, bench, seed, settings)))
        settings = worlds[-1]["settings"]
    for part, prefix in (("demo", ""), ("searched", "searched_")):
        for name, metric in itertools.product(worlds[0][part], METRICS):
            bench.average({f"{prefix}{name}_{metric}": [world[part][name][metric] for world in worlds]})
    known = [name for name in LADDER if name in worlds[0]["users"]]  # a quick demo trains no SASRec
    for better, worse in itertools.pairwise(known):
        bench.figures |= apart(better, worse, [world["users"] for world in worlds])
    bench.figures["demo_seconds"] = max(world["seconds"] for world in worlds)
    bench.figures["demo_cpu_seconds"] = max(world["cpu_seconds"] for world in worlds)
    bench.protocol = worlds[0]["protocol"]
    bench.details["settings"] = settings
    bench.ratio("ours_over_oracle", "ours_ndcg@10", "oracle_ndcg@10")
    if bench.json:
        bench.json.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bench.work / "world-0" / "report.png", bench.json.with_suffix(".png"))


def one_world(bench: Bench, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run the demo on one world; then its baselines once more, with settings that the first world's validation chose.

    The demo takes its baselines as they are, for time.
    """
    started, cpu = time.perf_counter(), time.process_time()
    demo = run_demo(bench.work / f"world-{seed}", console, quick=bench.quick, seed=seed)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    searched = demo
    if not bench.quick:
        experiment = open_experiment(bench.work / f"world-{seed}" / "run")
        trials: Any = 1 if settings else SEARCHED
        searched = bench.compare(experiment, tuple(SEARCHED), trials, f"searched-{seed}", settings)
        settings = settings or {name: found_settings(name, searched) for name in SEARCHED}
    return {
        "demo": means(demo),
        "searched": means(searched),
        "users": {**per_user(demo), **per_user(searched)},
        "settings": settings,
        "protocol": demo.report.rows[0].protocol,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def found_settings(name: str, compared: Compared) -> dict[str, Any]:
    """Return the best setting of a search, its seed excepted."""
    found: dict[str, Any] = plain(compared.tunings[name].best.config)
    return {key: value for key, value in found.items() if key != "seed"}


def rows_of(compared: Compared) -> list[Any]:
    report = compared.report
    return [*report.rows, *([report.ceiling] if report.ceiling else [])]


def means(compared: Compared) -> dict[str, dict[str, float]]:
    return {row.name: {metric: row.means()[metric] for metric in METRICS} for row in rows_of(compared)}


def per_user(compared: Compared) -> dict[str, list[float]]:
    return {row.name: row.per_query(METRICS[0]).tolist() for row in rows_of(compared)}


def apart(better: str, worse: str, worlds: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return the mean difference of two rows over the users of all worlds, and its 95 % interval."""
    differences = np.concatenate([np.subtract(users[better], users[worse]) for users in worlds])
    mean, half = differences.mean(), 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))
    name = f"{better}_minus_{worse}"
    return {name: float(mean), f"{name}_low": float(mean - half), f"{name}_high": float(mean + half)}
