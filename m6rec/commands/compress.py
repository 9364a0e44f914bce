"""The command that makes a run cheaper. Heavy imports wait for it."""

from typing import Annotated

import typer
from rich.table import Table

from m6rec.commands.screen import JsonOption, RunArgument, console, write_json

app = typer.Typer(rich_markup_mode=None)


@app.command()
def compress(
    run: RunArgument,
    method: Annotated[str, typer.Argument(help="early-exit, prune, quantize, share, structured, or edge: all of it.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="key=value words: out=RUN2, settings of the method, of training.* and task.*."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Make a run cheaper: m6rec compress RUN quantize out=RUN2. An interrupted one goes on when called again."""
    from m6rec.workflows.compression import compress_run

    card = compress_run(run, method, settings or [])
    table = Table("figure", "value", box=None, pad_edge=False)
    for name, value in card.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:.4g}")
        elif name in ("before", "after", "quality"):
            table.add_row(name, ", ".join(f"{key} {number:.4g}" for key, number in value.items() if number is not None))
    console.print(table)
    if "depths" in card:
        console.print(_depths(card["depths"]))
    write_json(json_file, lambda: card)


def _depths(rows: list[dict[str, float | None]]) -> Table:
    """Return a table of what every exit depth costs and is worth."""
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if value is None else f"{value:.4g}" for value in row.values()))
    return table
