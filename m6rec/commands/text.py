"""The commands that write text: score, explain, create, generate, chat. Heavy imports wait for their command."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from m6rec.commands.screen import HistoryOption, JsonOption, RunArgument, console, parts, read_history, write_json

app = typer.Typer(rich_markup_mode=None)
BesideOption = Annotated[
    list[Path] | None,
    typer.Option("--with", help="A further run on the same backbone, e.g. one that ranks. Repeatable."),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="How to write, e.g. strategy=sample temperature=0.8 max_new_tokens=24. Repeatable."),
]


@app.command()
def score(
    run: RunArgument,
    text: Annotated[list[str], typer.Argument(help="Events in words: 'bought a red lamp'.")],
    history: HistoryOption = "",
    json_file: JsonOption = None,
) -> None:
    """Say how likely each event is, by the language model: m6rec score RUN "bought a red lamp" "bought a blue one"."""
    from m6rec.api import load

    scores = load(run).score(text, read_history(history))
    table = Table("log-likelihood", "event", box=None, pad_edge=False)
    for found, event in sorted(zip(scores, text, strict=True), reverse=True):
        table.add_row(f"{found:.3f}", event)
    console.print(table)
    write_json(json_file, lambda: {"scores": dict(zip(text, scores, strict=True))})


@app.command()
def explain(
    run: RunArgument,
    item: Annotated[str, typer.Option(help="Id or title of the item.")],
    history: HistoryOption = "",
    beside: BesideOption = None,
    settings: SettingOption = None,
    json_file: JsonOption = None,
) -> None:
    """Say why an item suits a user: m6rec explain RUN --item "red lamp" --history "blue lamp; green chair"."""
    from m6rec.api import load

    found = load(run, *(beside or [])).explain(read_history(history), item, **_settings(settings))
    console.print(f"{found.item.title}: {found.text}", soft_wrap=True)
    evidence = found.evidence
    console.print(
        f"rests on events {', '.join(str(number + 1) for number in evidence.events) or 'none'} of the history"
    )
    for name in ("attributes", "inferred", "unsupported"):
        if getattr(evidence, name):
            console.print(f"{name}: {', '.join(getattr(evidence, name))}")
    write_json(
        json_file,
        lambda: {
            "item": found.item.id,
            "text": found.text,
            "evidence": vars(evidence),
            "drops": found.drops,
            "complete": found.complete,
        },
    )


@app.command()
def create(
    run: RunArgument,
    history: HistoryOption = "",
    kind: Annotated[
        str, typer.Option(help="title, query, description, or another prompt the run was trained on.")
    ] = "title",
    n: Annotated[int, typer.Option("-n", help="How many different ones.")] = 1,
    item: Annotated[str | None, typer.Option(help="What it is about, for kinds that are about an item.")] = None,
    settings: SettingOption = None,
    json_file: JsonOption = None,
) -> None:
    """Write what could be made for a user: m6rec create RUN --history "blue lamp; green chair" --kind title -n 5."""
    from m6rec.api import load

    made = load(run).create(read_history(history), kind, n, item=item, **_settings(settings))
    table = Table("", kind, "in the catalogue as", box=None, pad_edge=False)
    for place, one in enumerate(made, start=1):
        table.add_row(str(place), str(one), one.duplicate_of or "")
    console.print(table)
    write_json(json_file, lambda: {"created": [vars(one) for one in made]})


@app.command()
def generate(
    run: RunArgument,
    text: Annotated[str, typer.Argument(help="Free text; [MASK] is a blank.")],
    source: Annotated[str, typer.Option(help="What is known, e.g. of the user, in words.")] = "",
    streamed: Annotated[bool, typer.Option("--stream", help="Print words as they are written.")] = False,
    settings: SettingOption = None,
    json_file: JsonOption = None,
) -> None:
    """Fill the blanks of a text, or go on behind it: m6rec generate RUN "the user now buys [MASK]"."""
    from m6rec.api import load

    recommender = load(run)
    if streamed:
        for piece in recommender.stream(text, source, **_settings(settings)):
            console.print(piece, end="", soft_wrap=True)
        console.print()
        return
    found = recommender.generate(text, source, **_settings(settings))
    console.print(found.text, soft_wrap=True)
    if not found.complete:
        console.print("(a blank met the limit of length; --set max_new_tokens=64 allows more)")
    write_json(json_file, lambda: {"text": found.text, "blanks": [vars(blank) for blank in found.blanks]})


@app.command()
def chat(
    run: RunArgument,
    settings: SettingOption = None,
    json_file: JsonOption = None,
) -> None:
    """Talk with a run that was trained on dialogues: m6rec chat RUN; a line a turn, /reset begins anew, /quit ends."""
    from m6rec.api import load
    from m6rec.commands.chat import converse

    turns = converse(load(run), console, sys.stdin, _settings(settings))
    write_json(json_file, lambda: {"turns": turns})


def _settings(words: list[str] | None) -> dict[str, Any]:
    """Return ``key=value`` words as settings of decoding."""
    from m6rec.config import assign

    return assign({}, [word for line in words or [] for word in parts(line, " ")])
