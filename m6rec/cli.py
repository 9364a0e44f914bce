"""The command line: words in, tables and JSON out. Knows no algorithm; heavy imports wait for their command."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m6rec.commands import batch, bench, compress, plan, serve, text
from m6rec.commands.screen import HistoryOption, JsonOption, RunArgument, console, parts, read_history, write_json
from m6rec.errors import ConfigError, M6RecError, UnknownNameError

app = typer.Typer(
    name="m6rec",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="One pretrained language model as an open-ended recommender.",
)
data_app = typer.Typer(no_args_is_help=True, help="Prepare dataset folders.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
hub_app = typer.Typer(
    no_args_is_help=True, help="Push runs to the Hugging Face Hub and pull them.", rich_markup_mode=None
)
app.add_typer(hub_app, name="hub")
for family in (text, compress, batch, plan, serve, bench):
    app.add_typer(family.app)
SHELVES = {
    "backbones": "m6rec.backbones:BACKBONES",
    "baselines": "m6rec.baselines:BASELINES",
    "compressors": "m6rec.compressors:COMPRESSORS",
    "engines": "m6rec.edge.engines:ENGINES",
    "executors": "m6rec.serving.executors:EXECUTORS",
    "indexes": "m6rec.indexes:INDEXES",
    "sources": "m6rec.data.sources:SOURCES",
    "stages": "m6rec.serving.stages:STAGES",
    "tasks": "m6rec.tasks:TASKS",
    "teachers": "m6rec.distillation.executors:EXECUTORS",
    "tuners": "m6rec.tuners:TUNERS",
}


def main() -> None:
    """Run a command; a mistake of the user's is one message and exit status 2, never a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "datasets", "transformers", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except M6RecError as error:
        Console(stderr=True).print(Text.assemble(("error", "bold red"), ": ", str(error)), soft_wrap=True)
        raise SystemExit(2) from error


@data_app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def prepare(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="Name on the sources shelf: csv, jsonl, movielens-1m, amazon, world, ...")
    ],
) -> None:
    """Turn a log into a dataset folder: m6rec data prepare csv --from log.csv --user who --item what --out DIR."""
    from m6rec.commands.flags import flag_help, parse_flags
    from m6rec.data.prepare import PrepareConfig
    from m6rec.data.prepare import prepare as prepare_dataset
    from m6rec.data.sources import SOURCES

    if source in ("--help", "-h"):
        typer.echo(
            f"{context.get_help()}\n\nSources: {', '.join(SOURCES)}. Their flags: m6rec data prepare SOURCE --help"
        )
        return
    kind = SOURCES.load(source)
    configs, aliases = {"source": kind.Config, "prepare": PrepareConfig}, {"from": "path"}
    words = list(context.args)
    if "--help" in words or "-h" in words:
        table = Table(
            "flag", "default", "", box=None, title=f"m6rec data prepare {source} --out DIR", title_justify="left"
        )
        for row in flag_help(configs, aliases):
            table.add_row(*row)
        console.print(table)
        return
    out = _take(words, "--out")
    if out is None:
        raise ConfigError("missing flag --out DIR: where the dataset folder goes")
    chosen = parse_flags(words, configs, aliases)
    manifest = prepare_dataset(kind(chosen["source"]), out, chosen["prepare"])
    table = Table(box=None, show_header=False, title=f"{manifest.name} -> {out}", title_justify="left")
    for name, count in manifest.counts.items():
        if count:
            table.add_row(name.replace("_", " "), f"{count:,}")
    table.add_row("split", manifest.split.rule)
    table.add_row("ties", manifest.ties)
    for removed in manifest.filters:
        table.add_row("filter", str(removed))
    console.print(table)


@app.command(context_settings={"allow_extra_args": True})
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or the path of a YAML file.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value words, e.g. data=DIR out=RUN training.num_epochs=5.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in out.")] = False,
) -> None:
    """Train a recipe on a dataset folder: m6rec train retrieval data=DIR out=RUN."""
    from m6rec.recipe import read_recipe
    from m6rec.workflows.stages import report
    from m6rec.workflows.stages import train as train_recipe

    chosen = read_recipe(recipe, settings or [])
    _, result = train_recipe(chosen, resume=resume)
    if result.interrupted:
        console.print(f"interrupted at step {result.steps}; go on with --resume")
        return
    if chosen.dense is not None:
        console.print(report(chosen.out))
    console.print(
        f"{chosen.out}: {result.steps} steps, {result.epochs:.1f} epochs, "
        f"{result.seconds:.0f} s ({result.cpu_seconds:.0f} CPU-s)",
        soft_wrap=True,
    )


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    baselines: Annotated[str, typer.Option(help="Names separated by commas, e.g. popularity,itemknn,sasrec.")] = "",
    trials: Annotated[int, typer.Option(help="Settings that each tunable baseline tries on validation.")] = 1,
    ranker: Annotated[
        Path | None, typer.Option(help="A ranking run: also compare its order of what is retrieved.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Dataset folder, if it has moved.")] = None,
    json_file: JsonOption = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG).")] = None,
) -> None:
    """Evaluate a run beside baselines, on everything that was held out."""
    from m6rec.assemble import open_experiment
    from m6rec.hub.transfer import locate
    from m6rec.workflows.comparison import compare_reranked, compare_run
    from m6rec.workflows.measurement import measure_run, measures_itself

    if split not in ("valid", "test"):
        raise UnknownNameError("split", split, ("valid", "test"))
    experiment = open_experiment(locate(run), data)
    held_out: Any = split
    if measures_itself(experiment.task):
        measured = measure_run(experiment, held_out)
        console.print(measured.table())
        write_json(json_file, measured.to_dict)
        return
    compared = compare_run(experiment, held_out, parts(baselines, ","), trials)
    console.print(compared.report.table())
    answer = compared.to_dict(experiment)
    if ranker:
        reranked = compare_reranked(experiment, open_experiment(locate(ranker), data), held_out)
        console.print(reranked.table())
        answer["reranked"] = reranked.to_dict()
    write_json(json_file, lambda: answer)
    if plot:
        compared.report.plot(plot)


@app.command()
def recommend(
    run: RunArgument,
    history: HistoryOption = "",
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    ranker: Annotated[Path | None, typer.Option(help="A ranking run that orders what is retrieved.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Recommend items for a history: m6rec recommend RUN --history "title one; title two" -k 10."""
    from m6rec.api import load

    found = load(run, ranker=ranker).recommend(read_history(history), k)
    _show_items(found, json_file)


@app.command()
def rank(
    run: RunArgument,
    candidates: Annotated[str, typer.Option(help="Ids or titles separated by ';'.")],
    history: HistoryOption = "",
    context: Annotated[
        str, typer.Option(help="For a run with scenes, what else is known: 'time=1700000000; place=Lisbon'.")
    ] = "",
    json_file: JsonOption = None,
) -> None:
    """Order candidates for a history with a ranking run."""
    from m6rec.config import assign
    from m6rec.loading import load

    known = assign({}, parts(context, ";"))
    _show_items(load(run).rank(read_history(history), parts(candidates, ";"), known), json_file)


@hub_app.command(name="push")
def hub_push(
    run: RunArgument,
    name: Annotated[str, typer.Argument(help="OWNER/NAME; made where it does not exist.")],
    figures: Annotated[
        Path | None, typer.Option(help="What `m6rec evaluate RUN --json FILE` wrote, for the card.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Hub id of the base model, where the run names a folder.")] = None,
    catalogue: Annotated[bool, typer.Option(help="Whether the items' titles and fields go along.")] = True,
    private: Annotated[bool | None, typer.Option(help="Whether a new model is private.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write the files into this folder instead, to look at them.")] = None,
) -> None:
    """Push a run, with card, recipe and words: m6rec hub push runs/shop OWNER/NAME --figures report.json."""
    from m6rec.hub.transfer import prepare, push

    if to is not None:
        prepare(run, to, name, base=base, figures=figures, catalogue=catalogue)
        console.print(
            f"{to}: {', '.join(sorted(str(path.relative_to(to)) for path in to.rglob('*') if path.is_file()))}"
        )
        return
    console.print(push(run, name, base=base, figures=figures, catalogue=catalogue, private=private), soft_wrap=True)


@hub_app.command(name="pull")
def hub_pull(
    name: Annotated[str, typer.Argument(help="OWNER/NAME, or OWNER/NAME@REVISION.")],
    out: Annotated[Path | None, typer.Option(help="A new folder; default: a cache.")] = None,
) -> None:
    """Pull a run and print its folder: m6rec hub pull OWNER/NAME --out runs/theirs."""
    from m6rec.hub.transfer import pull

    console.print(str(pull(name, out)), soft_wrap=True)


@app.command(name="show-prompt")
def show_prompt(
    data: Annotated[str, typer.Argument(help="A dataset folder.")],
    task: Annotated[str, typer.Option(help="Prompt file: retrieval, ranking, item, or a path.")] = "retrieval",
    user: Annotated[str, typer.Option(help="The log's own id of a user; default: the first.")] = "",
    candidates: Annotated[str, typer.Option(help="Item ids separated by ';'; default: what the user did next.")] = "",
    backbone: Annotated[str, typer.Option(help="Whose tokenizer counts.")] = "minilm",
    domain: Annotated[str | None, typer.Option(help="Data template; default: the dataset's.")] = None,
) -> None:
    """Print what the model sees for a user and a task, segment by segment."""
    from m6rec.commands.inspection import prompt_table

    console.print(prompt_table(data, task, user, parts(candidates, ";"), backbone, domain))


@app.command(name="list")
def list_shelves(shelf: Annotated[str | None, typer.Argument(help="One shelf; default: all.")] = None) -> None:
    """List every plug-in with its one-line description and its source."""
    if shelf is not None and shelf not in SHELVES:
        raise UnknownNameError("shelf", shelf, SHELVES)
    for name in [shelf] if shelf else SHELVES:
        registry = open_shelf(name)
        table = Table(box=None, title=name, title_justify="left", show_header=False)
        for entry in registry:
            line, source = registry.describe(entry)
            table.add_row(entry, line, source, style=None)
        console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, run, report and picture.")] = Path("demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small world and one epoch, to see that everything runs.")
    ] = False,
) -> None:
    """Run the main job on the sample world: prepare, train, evaluate, recommend, explain; offline."""
    from m6rec.commands.demo import run_demo

    run_demo(out, console, quick=quick)


def open_shelf(name: str) -> Any:
    """Return a shelf's table by its plural name."""
    import importlib

    module, _, attribute = SHELVES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _show_items(found: list[Any], json_file: Path | None) -> None:
    table = Table("", "item", "id", "score", box=None, pad_edge=False)
    for place, item in enumerate(found, start=1):
        table.add_row(str(place), item.title, item.id, f"{item.score:.4f}")
    console.print(table)
    write_json(
        json_file, lambda: {"items": [{"id": item.id, "title": item.title, "score": item.score} for item in found]}
    )


def _take(words: list[str], flag: str) -> str | None:
    """Remove ``flag VALUE`` or ``flag=VALUE`` from ``words`` and return the value."""
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            value = words[place + 1]
            del words[place : place + 2]
            return value
        if word.startswith(f"{flag}="):
            return words.pop(place).partition("=")[2]
    return None
