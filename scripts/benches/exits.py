"""Early exit on MovieLens latest-small, ranking by words: what it saves, what it costs, and who leaves where."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from benches.compressed import (
    LAST,
    PAIRS,
    SMALL_EXITS,
    Request,
    batch_of,
    compressed,
    ms_a_request,
    quality,
    ranking_run,
    requests,
    torch_answer,
)
from benches.harness import Bench, console

from m6rec.assemble import Experiment, open_experiment
from m6rec.compressors.exit_config import ExitConfig
from m6rec.compressors.exit_policy import Judge
from m6rec.compressors.exits import ExitingBackbone, GivenStates
from m6rec.metrics.ranking import auc

POLICIES = [
    *(ExitConfig(policy="patience", threshold=value) for value in (0.005, 0.01, 0.02, 0.04, 0.08)),
    *(ExitConfig(policy="entropy", threshold=value) for value in (0.85, 0.9, 0.95, 0.98)),
    *(ExitConfig(policy="margin", threshold=value) for value in (0.1, 0.2, 0.3, 0.4)),
    *(ExitConfig(policy="order", top=top) for top in (3, 10)),
    *(ExitConfig(depth=depth) for depth in range(1, 6)),
]
# What may be lost on validation by the setting that is taken.
ALLOWED = 0.003


def run(bench: Bench) -> None:
    bench.details["seeds"] = bench.each_seed(one_seed)
    bench.protocol = {
        "task": "rating of 4 or more by time, words only",
        "pairs": f"{PAIRS} of validation choose the policy, {PAIRS} of test are told",
        "time": "CPU-ms a request on one thread, median of 7 interleaved rounds",
    }


def one_seed(bench: Bench, seed: int) -> dict[str, object]:
    """Return figures and tables of one seed."""
    plain = ranking_run(bench, seed)
    run_folder = Path(plain.recipe.out)
    exits = open_experiment(
        compressed(bench, run_folder, "early-exit", f"exits-{seed}", [*SMALL_EXITS, *LAST]), plain.recipe.data
    )
    assert isinstance(exits.backbone, ExitingBackbone)
    at_most = 60 if bench.quick else PAIRS
    told = requests(exits.task, "test", at_most)
    depths, labels = logits_by_depth(exits, told), np.concatenate([request.labels for request in told])
    chosen = choose(exits, requests(exits.task, "valid", at_most))
    scores, left = leave(chosen, depths)
    figures = {
        "plain_auc": quality(torch_answer(plain.task, plain.backbone), told),
        **{f"auc_depth_{n}": auc(labels, yes(depth)) for n, depth in enumerate(zip(*depths, strict=True), start=1)},
        "exit_auc": auc(labels, scores),
    }
    figures["auc_loss"] = figures["plain_auc"] - figures["exit_auc"]
    figures |= {f"left_after_{n}": float(np.mean(left == n)) for n in range(1, exits.backbone.num_layers + 1)}
    figures |= times(plain, exits, chosen, told)
    console.print(chosen, {name: round(value, 4) for name, value in figures.items()})
    return {"figures": figures, "policy": str(chosen)}


def times(plain: Experiment, exits: Experiment, chosen: ExitConfig, told: Sequence[Request]) -> dict[str, float]:
    """Return CPU-milliseconds a request of the plain model and of the one that leaves, and their ratio."""
    exits.backbone.set(chosen)
    ways = {
        "plain": torch_answer(plain.task, plain.backbone),
        "exit": torch_answer(exits.task, exits.backbone),
    }
    found = ms_a_request(ways, told)
    return {f"{name}_cpu_ms": value for name, value in found.items()} | {"cpu_saved": found["plain"] / found["exit"]}


@torch.no_grad()
def logits_by_depth(exits: Experiment, asked: Sequence[Request]) -> list[list[torch.Tensor]]:
    """Return ``[requests][depths]`` logits, all depths from one walk."""
    task, found = exits.task.eval(), []
    for request in asked:
        batch = batch_of(task, request)
        walk = exits.backbone.every_depth(batch.tokens)
        found.append([task.logits(GivenStates(exits.backbone, states), batch) for states in walk])
    return found


def yes(logits: Sequence[torch.Tensor]) -> np.ndarray:
    """Return the probability of a yes of every candidate of all requests."""
    return torch.cat(list(logits)).softmax(1)[:, 1].numpy()


def leave(config: ExitConfig, depths: Sequence[Sequence[torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities under a policy, and after which layer each candidate left, without walking again."""
    scores, left = [], []
    for logits in depths:
        points, last = torch.arange(len(logits[0])), config.depth or len(logits)
        judge, at = Judge(config, torch.zeros(len(points), dtype=torch.long)), torch.full((len(points),), last)
        for depth in range(1, last if config.policy != "never" else 1):
            gone = judge.leave(points, logits[depth - 1][points])
            at[points[gone]], points = depth, points[~gone]
            if not len(points):
                break
        scores.append(torch.stack([logits[depth - 1][point] for point, depth in enumerate(at.tolist())]))
        left.append(at)
    return yes(scores), torch.cat(left).numpy()


def choose(exits: Experiment, asked: Sequence[Request]) -> ExitConfig:
    """Return the policy that lets candidates leave soonest on validation while it loses next to nothing there."""
    depths, labels = logits_by_depth(exits, asked), np.concatenate([request.labels for request in asked])
    full = auc(labels, yes([each[-1] for each in depths]))
    rows = []
    for config in POLICIES:
        scores, left = leave(config, depths)
        rows.append((float(left.mean()), auc(labels, scores), config))
        console.print(f"valid: mean depth {rows[-1][0]:.2f}, AUC {rows[-1][1]:.4f} (full {full:.4f})", config)
    good = [row for row in rows if row[1] >= full - ALLOWED]
    return min(good, key=lambda row: row[0])[2] if good else replace(exits.backbone.config, depth=None, policy="never")
