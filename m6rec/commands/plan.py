"""The command that plans how a run is served. Heavy imports wait for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from m6rec.commands.screen import console

if TYPE_CHECKING:
    from m6rec.serving.planning.plan import Plan
    from m6rec.serving.planning.request_log import RequestLog
    from m6rec.serving.planning.search import SearchConfig

app = typer.Typer(rich_markup_mode=None)
# Asked before a replay is counted.
WARM_REQUESTS = 50


@app.command()
def plan(
    log: Annotated[Path, typer.Argument(help="A request log: m6rec serve RUN --log LOG.")],
    run: Annotated[
        Path | None, typer.Argument(help="A run: the best plans are replayed on it for real. The log keeps requests.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The plan file, for m6rec serve RUN --plan.")] = Path("plan.yaml"),
    beside: Annotated[
        list[Path] | None, typer.Option("--with", help="A further run, e.g. one that ranks. Repeatable.")
    ] = None,
    also: Annotated[
        list[Path] | None, typer.Option(help="A log of the same graph under other threads. Repeatable.")
    ] = None,
    cores: Annotated[float | None, typer.Option(help="That the server has; default: those of this process.")] = None,
    load: Annotated[float, typer.Option(help="Times the log's own traffic to plan for.")] = 1.0,
    deadline_ms: Annotated[float | None, typer.Option(help="How long a request may take; default: as logged.")] = None,
    cache_mb: Annotated[float | None, typer.Option(help="Memory for caches, to be split; default: as it was.")] = None,
    trials: Annotated[int, typer.Option(help="Plans that are tried: 4, 8, 16, ...")] = 32,
    replays: Annotated[int, typer.Option(help="Of the best plans, how many are replayed on RUN.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
) -> None:
    """Find how to serve a log's traffic: m6rec plan requests.jsonl RUN --out plan.yaml."""
    import dataclasses

    from m6rec.serving.planning.plan import write_plan
    from m6rec.serving.planning.request_log import read_log
    from m6rec.serving.planning.search import SearchConfig, search

    config = SearchConfig(
        cores=cores or _own_cores(),
        load=load,
        deadline_ms=deadline_ms,
        cache_bytes=None if cache_mb is None else round(cache_mb * 2**20),
        trials=trials,
        seed=seed,
    )
    logs = [read_log(path) for path in (log, *(also or []))]
    found = search(logs, config, console.print, keep=max(1, replays))
    best, figures = found.plans[0], found.figures
    console.print(f"simulated, on the {1 - config.window:.0%} of the log that no plan was found on:")
    console.print(_table(figures["judged on"]))
    if run is not None:
        best, figures["replayed"] = _replayed(found.plans, [run, *(beside or [])], logs[0], config)
        console.print("replayed for real, on the same:")
        console.print(_table(figures["replayed"]))
    how = {"log": log.name, "search": dataclasses.asdict(config), **figures}
    write_plan(dataclasses.replace(best, found=how), out)
    console.print(f"{out}: m6rec serve RUN --plan {out}", soft_wrap=True)


def _replayed(
    plans: "Sequence[Plan]", runs: Sequence[Path], log: "RequestLog", config: "SearchConfig"
) -> "tuple[Plan, dict[str, Any]]":
    """Return the plan that does best for real on the rest of the log, and what each came to."""
    from m6rec.api import load
    from m6rec.serving.graphs import GraphConfig, recommender_graph
    from m6rec.serving.planning.planned import logged_arrivals, replayed, with_plan
    from m6rec.serving.planning.search import loss_of, served_plan, whole_share

    recommender = load(*runs)
    first, rest = log.part(0, config.window), log.part(config.window, 1)
    warm, arrivals = (logged_arrivals(part, config.load, config.deadline_ms) for part in (first, rest))
    tried = {"served": served_plan(first, config), **{f"plan {place}": plan for place, plan in enumerate(plans, 1)}}
    losses, figures = {}, {}
    for name, plan in tried.items():
        report = replayed(
            plan,
            lambda plan: recommender_graph(recommender, with_plan(GraphConfig(), plan)),
            arrivals,
            warm[-WARM_REQUESTS:],
        )
        figures[name] = {**report.figures(), "whole": round(whole_share(report, log), 5)}
        losses[name] = loss_of(report, log)
    return tried[min(losses, key=losses.__getitem__)], figures


def _own_cores() -> float:
    """Return how many cores this process may use."""
    import os

    return float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    columns = {"in time /s": "goodput", "p50 ms": "p50_ms", "p99 ms": "p99_ms", "CPU ms": "cpu_ms_a_request"}
    shares = ("whole", "refused", "expired")
    table = Table("", *columns, *shares, box=None, pad_edge=False)
    for name, row in rows.items():
        numbers = (f"{row[each]:.4g}" for each in columns.values())
        table.add_row(name, *numbers, *(f"{row[each]:.1%}" for each in shares))
    return table
