"""The main job on the sample world, end to end: prepare, train, compare, recommend, explain. Offline."""

import json
import logging
import multiprocessing
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from m6rec.api import Recommender, load
from m6rec.assemble import open_experiment, train_run
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.world import World, WorldConfig
from m6rec.data.store import Dataset
from m6rec.errors import RunError
from m6rec.recipe import read_recipe
from m6rec.workflows.comparison import Compared, compare_run

BASELINES = ("popularity", "itemknn", "markov", "sasrec")
WRITERS_LOG = "writers.log"


def run_demo(out: Path, console: Console, quick: bool = False, seed: int = 0) -> Compared:
    """Make a world, learn from its log, and show what comes out.

    Args:
        out: gets ``data/``, ``run/``, ``why/``, ``report.json`` and ``report.png``.
        console: where to print.
        quick: a small world and one epoch, to see that everything runs.
        seed: of the world and of everything learnt from it.
    """
    started = time.perf_counter()
    console.rule("1  a log")
    world = World(WorldConfig(users=300, items=300, dialogues=20, seed=seed) if quick else WorldConfig(seed=seed))
    manifest = prepare(world, out / "data", PrepareConfig(seed=seed))
    console.print(", ".join(f"{manifest.counts[name]:,} {name}" for name in ("users", "items", "events")))
    _show_history(Dataset.open(out / "data"), console)
    with _training_beside(out, seed, quick):
        console.rule("2  training")
        _train("retrieval", out, "run", seed, [f"training.num_epochs={1 if quick else 8}"])
        console.rule("3  honest comparison")
        experiment = open_experiment(out / "run")
        compared = compare_run(experiment, "test", BASELINES[:3] if quick else BASELINES)
        console.print(compared.report.table())
        console.rule("4  recommendations")
        _recommend(load(out / "run"), console)
    console.rule("5  reasons")
    _explain(load(out / "run", out / "why"), console)
    result = compared.to_dict(experiment)
    result["seconds"], result["cpu_seconds"] = time.perf_counter() - started, _cpu_seconds()
    (out / "report.json").write_text(json.dumps(result, indent=1, default=float), encoding="utf-8")
    compared.report.plot(out / "report.png")
    told = f"everything is in {out}; {result['seconds']:.0f} s, {result['cpu_seconds']:.0f} CPU-s"
    console.print(told, style="dim", markup=False)
    return compared


@contextmanager
def _training_beside(out: Path, seed: int, quick: bool) -> Iterator[None]:
    """Train what writes in a process of its own: on a second core it takes no time of the retriever's.

    Raises:
        RunError: it failed; its log says why.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_train_writers, args=(out, seed, quick), daemon=True, name="writers"
    )
    process.start()
    yield
    process.join()
    if process.exitcode:
        raise RunError(f"training explanations failed; see {out / WRITERS_LOG}")


def _train_writers(out: Path, seed: int, quick: bool) -> None:
    """Teach the small language model that comes with the package to explain, by some steps on the log's reviews."""
    with (out / WRITERS_LOG).open("w", encoding="utf-8", buffering=1) as log:
        sys.stdout = sys.stderr = log
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=log)
        words = ["backbone.name=foundation", f"training.max_steps={2 if quick else 100}"]
        words += ["training.evaluate_every=null", "training.select_on=null"]
        _train("explanation", out, "why", seed, words)


def _cpu_seconds() -> float:
    """Return what this process and those that it waited for have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _train(recipe: str, out: Path, name: str, seed: int, words: Sequence[str]) -> None:
    """Train a recipe on the demo's log, in place of what an earlier demo has left."""
    shutil.rmtree(out / name, ignore_errors=True)
    places = [f"data={out / 'data'}", f"out={out / name}", f"seed={seed}"]
    if train_run(read_recipe(recipe, [*places, *words]))[1].interrupted:
        raise SystemExit(130)


def _show_history(dataset: Dataset, console: Console) -> None:
    """Print the first user's last known events, as records."""
    history = dataset.histories().before("test")
    rows = range(*history.of(0).indices(history.num_events))
    table = Table("verb", "what", "category", box=None, title="one user", title_justify="left")
    for row in list(rows)[-6:]:
        event = dataset.event_record(int(history.rows[row]) if history.rows is not None else row)
        item = event.get("item") or {}
        table.add_row(event.get("verb", ""), item.get("title", event.get("query", "")), item.get("category", ""))
    console.print(table)


def _recommend(recommender: Recommender, console: Console) -> None:
    """Recommend for a user who is in no log, and for one who has bought something nobody has ever sold."""
    catalogue = recommender.run.task.catalogue
    titles = [str(record["title"]) for record in catalogue.records[:2]]
    for history in (titles, ["hand-thrown stoneware teapot in ash grey"]):
        table = Table("", "item", "score", box=None, title=f"after: {'; '.join(history)}", title_justify="left")
        for place, item in enumerate(recommender.recommend(history, k=10), start=1):
            table.add_row(str(place), item.title, f"{item.score:.3f}")
        console.print(table)


def _explain(recommender: Recommender, console: Console) -> None:
    """Say why the best items for a user suit, and how much of their scores rests on what is cited."""
    catalogue = recommender.run.task.catalogue
    history = [str(record["title"]) for record in catalogue.records[:2]]
    table = Table("item", "why", "rests on", box=None, title=f"after: {'; '.join(history)}", title_justify="left")
    for item in recommender.recommend(history, k=3):
        found = recommender.explain(history, item.id)
        table.add_row(item.title, found.text, "; ".join(history[number] for number in found.evidence.events))
    console.print(table)
