"""The command that answers a file of requests. Heavy imports wait for it."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich import progress as bars
from rich.console import Console

from m6rec.commands.screen import RunArgument, console, parts
from m6rec.config import assign

logger = logging.getLogger(__name__)
app = typer.Typer(rich_markup_mode=None)


@app.command()
def batch(
    run: RunArgument,
    source: Annotated[Path, typer.Argument(metavar="IN.parquet", help="A request a row.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.parquet", help="Its answers, beside the columns not read.")],
    work: Annotated[
        str | None,
        typer.Option(
            help="recommend or retrieve (reads history), rank (history, candidates), explain (history, item), create "
            "(history), generate (text), score (text), chat (turns), embed (item). Default: what it was trained for."
        ),
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option("--with", help="A further run, e.g. one that ranks. Repeatable.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items, for recommend and retrieve.")] = 10,
    kind: Annotated[str | None, typer.Option(help="What create writes; default: what the run was trained on.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="What a column is called: --column history=basket. Repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="How to write, e.g. max_new_tokens=24. Repeatable.")
    ] = None,
    keep_errors: Annotated[
        bool, typer.Option("--keep-errors", help="A row that cannot be read says why in the column `error`.")
    ] = False,
    part_rows: Annotated[int, typer.Option(help="Rows that are in memory, and lost to a cut, at most.")] = 1024,
    executor: Annotated[str, typer.Option(help="local, or ray (Ray Data).")] = "local",
    workers: Annotated[int, typer.Option(help="Processes of ray, each with the run in its memory.")] = 1,
) -> None:
    """Answer a file of requests: m6rec batch RUN IN.parquet OUT.parquet. A cut one goes on when called again."""
    from m6rec.errors import UnknownNameError
    from m6rec.serving.batch import BatchConfig, BatchJob, run_batch

    if executor not in ("local", "ray"):
        raise UnknownNameError("executor", executor, ("local", "ray"))
    config = BatchConfig(
        work=work,
        k=k,
        kind=kind,
        columns=assign({}, column or []),
        decoding=assign({}, [word for line in settings or [] for word in parts(line, " ")]),
        keep_errors=keep_errors,
        part_rows=part_rows,
        executor=cast(Literal["local", "ray"], executor),
        workers=workers,
    )
    job = BatchJob((str(run), *map(str, beside or [])), source, out, config)
    with _bar() as bar:
        row = bar.add_task("rows", total=None)

        def show(so_far: int, total: int) -> None:
            bar.update(row, completed=so_far, total=total)
            if bar.disable:
                logger.info("%d of %d rows", so_far, total)

        done = run_batch(job, show)
    kept = f", {done.kept:,} of them by an earlier start" if done.kept else ""
    console.print(f"{out}: {done.rows:,} rows{kept}", soft_wrap=True)


def _bar() -> bars.Progress:
    """Return a bar with rows, speed and time left; nothing where there is no terminal."""
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
