"""Quality against CPU-milliseconds a request: one lever at a time, then stacked, down to the cheapest."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benches.compressed import (
    LAST,
    PAIRS,
    SMALL_EXITS,
    compressed,
    ms_a_request,
    quality,
    ranking_run,
    requests,
    torch_answer,
)
from benches.edge import TRAINED
from benches.harness import Bench, console

from m6rec.assemble import Experiment, open_experiment
from m6rec.compressors.exit_config import ExitConfig
from m6rec.edge.recommender import EdgeRecommender

# What a cheaper model has to keep of what the full one is above chance.
KEPT = 0.95
Answers = dict[str, Callable[..., Any]]


def run(bench: Bench) -> None:
    """Draw the first seed: the picture is of one model and its descendants."""
    points = bench.once("points", lambda: measure(bench))
    for name, point in points.items():
        bench.figures |= {f"{name}_auc": point["auc"], f"{name}_cpu_ms": point["cpu_ms"]}
    full = points["torch_fp32"]
    good = {name: p for name, p in points.items() if p["auc"] - 0.5 >= KEPT * (full["auc"] - 0.5)}
    cheapest = min(good, key=lambda name: good[name]["cpu_ms"])
    bench.figures["cheapest_over_full"] = full["cpu_ms"] / good[cheapest]["cpu_ms"]
    bench.details |= {"points": points, "cheapest": cheapest}
    bench.protocol = {
        "task": "rating of 4 or more by time, words only",
        "pairs": f"{PAIRS} of test",
        "time": "CPU-ms a request on one thread, median of 7 interleaved rounds",
        "kept": f"{KEPT:.0%} of the full model's AUC above one half",
    }
    if bench.json:
        draw(points, cheapest, bench.json.with_suffix(".png"))


def measure(bench: Bench) -> dict[str, dict[str, float]]:
    """Return AUC and time of every way to answer."""
    plain = ranking_run(bench, 0)
    folder = Path(plain.recipe.out)
    exits_folder = compressed(bench, folder, "early-exit", "exits-0", [*SMALL_EXITS, *LAST])
    exits = open_experiment(exits_folder, plain.recipe.data)
    ways = levers(bench, plain, exits, folder) | stacked(bench, folder, exits_folder)
    told = requests(plain.task, "test", 60 if bench.quick else PAIRS)
    times = ms_a_request(ways, told)
    points = {name: {"auc": quality(answer, told), "cpu_ms": times[name]} for name, answer in ways.items()}
    console.print({name: {key: round(value, 4) for key, value in point.items()} for name, point in points.items()})
    return points


def levers(bench: Bench, plain: Experiment, exits: Experiment, folder: Path) -> Answers:
    """Return one lever at a time."""
    int8 = EdgeRecommender(compressed(bench, folder, "quantize", "int8-0", ["precision=int8"]))
    cut_words = ["heads=0.25", "units=0.5", *SMALL_EXITS, *LAST]
    cut = open_experiment(compressed(bench, folder, "structured", "structured-0", cut_words), plain.recipe.data)
    ways: Answers = {
        "torch_fp32": torch_answer(plain.task, plain.backbone),
        "torch_bf16": torch_answer(plain.task, plain.backbone, bf16=True),
        "structured": torch_answer(cut.task, cut.backbone),
        "int8": lambda request: int8.answer(request.tree, request.numbers, int8.depth),
    }
    for config in (ExitConfig(policy="patience"), *(ExitConfig(depth=depth) for depth in (2, 4))):
        name = "exit_patience" if config.depth is None else f"exit_depth_{config.depth}"
        ways[name] = _exiting(exits, config)
    return ways


def _exiting(exits: Experiment, config: ExitConfig) -> Callable[..., Any]:
    answer = torch_answer(exits.task, exits.backbone)

    def under_its_policy(request: Any) -> Any:
        exits.backbone.set(replace(config))
        return answer(request)

    return under_its_policy


def stacked(bench: Bench, folder: Path, exits_folder: Path) -> Answers:
    """Return levers on top of each other: exits in eight bits, and M6-Edge, at every depth."""
    both = EdgeRecommender(compressed(bench, exits_folder, "quantize", "exits-int8-0", ["precision=int8"]))
    edge = EdgeRecommender(compressed(bench, folder, "edge", "edge-0", TRAINED))
    return {
        f"{name}_depth_{depth}": lambda request, one=one, depth=depth: one.answer(request.tree, request.numbers, depth)
        for name, one in (("int8_exit", both), ("edge", edge))
        for depth in one.card.depths
    }


def draw(points: Mapping[str, Mapping[str, float]], cheapest: str, path: Path) -> None:
    """Write the frontier as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=160)
    axes = figure.add_subplot()
    for name, point in points.items():
        mark = "s" if name.startswith("edge") else "^" if name.startswith("int8_exit") else "o"
        axes.plot(point["cpu_ms"], point["auc"], mark, markersize=9 if name == cheapest else 5)
        axes.annotate(name, (point["cpu_ms"], point["auc"]), fontsize=6, xytext=(4, 3), textcoords="offset points")
    axes.set(
        xscale="log", xlabel="CPU-ms a request, one thread", ylabel="AUC", title="one lever at a time, then stacked"
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
