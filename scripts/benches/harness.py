"""What the benches share: where data lies, how several seeds become one figure. Knows no bench."""

import json
import resource
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from m6rec.assemble import Experiment, open_experiment, train_run
from m6rec.config import plain
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.base import Source
from m6rec.data.store import Dataset
from m6rec.errors import ConfigError, RunError
from m6rec.recipe import read_recipe
from m6rec.runs import CARD_FILE, read_card
from m6rec.workflows.comparison import Compared, compare_run

console = Console(stderr=True)
# Counting baselines are searched in seconds; SASRec's default is the outcome of a search on Beauty's validation.
TRIALS = {"itemknn": 8, "markov": 8, "als": 4}


@dataclass
class Bench:
    """One run of one bench.

    Args:
        data: folder with the public datasets.
        work: folder for datasets and runs.
        seeds: how many.
        quick: a reduced run.
        json: where the result goes; pictures go beside it.
    """

    data: Path | None
    work: Path
    seeds: int
    quick: bool
    json: Path | None
    figures: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Return one public dataset's folder."""
        if self.data is None or not (self.data / name).is_dir():
            raise ConfigError(f"this bench needs --data with a folder {name}; got {self.data}")
        return self.data / name

    def once(self, name: str, job: Callable[[], dict[str, Any]]) -> Any:
        """Return what ``job`` found, or had found when this bench was cut short with the same ``--work``.

        Args:
            name: of this part, unlike any other's of the bench.
            job: gives what JSON can hold.
        """
        path = self.work / "found" / f"{name}{'-quick' if self.quick else ''}.json"
        if not path.is_file():
            found = job()
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(found), encoding="utf-8")
            partial.replace(path)
        # From the file in either case: what is shown does not depend on when it was found.
        return json.loads(path.read_text(encoding="utf-8"))

    def each_seed(self, job: Callable[["Bench", int], dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what ``job`` found with each seed, or had found before, and average its ``figures``.

        Benches that share ``--work`` share runs; so a part that was found bears the name of the job's own bench.

        Args:
            job: bench, seed -> ``figures``, and what else is worth keeping.
        """
        name = job.__module__.rpartition(".")[2]
        found = [self.once(f"{name}-{seed}", partial(job, self, seed)) for seed in range(self.seeds)]
        self.average({figure: [each["figures"][figure] for each in found] for figure in found[0]["figures"]})
        return found

    def prepare(self, source: Source, name: str, config: PrepareConfig) -> Dataset:
        """Prepare a dataset; a quick run keeps one user in ten."""
        out = self.work / name
        prepare(Thinned(source) if self.quick else source, out, config)
        return Dataset.open(out)

    def train(self, recipe: str, dataset: Dataset, name: str, seed: int, words: Sequence[str] = ()) -> Experiment:
        """Train a recipe on a dataset; a run that lies in ``--work`` is taken up, where it ended or where it was cut.

        Raises:
            RunError: the run there is of another recipe.
        """
        out = self.work / f"{name}-{seed}"
        quick = ["training.max_steps=4", "task.item_layers=1", "task.item_tokens=12"] if self.quick else []
        if not recipe.startswith("retrieval"):
            quick = quick[:1]
        chosen = read_recipe(recipe, [f"data={dataset.folder}", f"out={out}", f"seed={seed}", *words, *quick])
        self.recipe = plain(chosen)
        if not (out / CARD_FILE).is_file():
            _, result = train_run(chosen, resume=True)
            if result.interrupted:
                raise SystemExit(130)
        experiment = open_experiment(out, str(dataset.folder))
        if plain(experiment.recipe) != self.recipe:
            raise RunError(f"{out} holds a run of another recipe; give another --work, or remove it")
        cost = read_card(out)
        self.details.setdefault("training", []).append(
            {"run": out.name, "cpu_seconds": cost["cpu_seconds"], "epochs": cost["epochs"], "steps": cost["steps"]}
        )
        return experiment

    def pretrain(self, dataset: Dataset, name: str, seed: int, words: Sequence[str] = ()) -> str:
        """Return the folder of a small language model of a dataset's text; one that lies in ``--work`` is taken up."""
        small = ["backbone.shape.hidden_size=64", "backbone.shape.num_layers=2"] if self.quick else []
        return self.train("pretrain-small", dataset, name, seed, [*words, *small]).recipe.out

    def compare(
        self,
        experiment: Experiment,
        baselines: Sequence[str],
        trials: int | Mapping[str, int],
        title: str,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Compared:
        """Evaluate on the test period beside baselines; print the table and keep the report."""
        compared = compare_run(experiment, "test", baselines, trials, settings=settings)
        console.print(compared.report.table())
        self.protocol = compared.to_dict(experiment)["protocol"]
        self.details.setdefault("reports", []).append(compared.to_dict(experiment)["report"])
        self.details.setdefault("tuning", {}).update({name: t.to_dict() for name, t in compared.tunings.items()})
        if self.json:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            compared.report.plot(self.json.with_name(f"{self.json.stem}-{title}.png"))
        return compared

    def collect(self, rows: Sequence[Compared], metrics: Sequence[str], prefix: str = "") -> None:
        """Write each row's mean over seeds, and its spread where there are several."""
        values: dict[str, list[float]] = {}
        for compared in rows:
            report = compared.report
            for row in [*report.rows, *([report.ceiling] if report.ceiling else [])]:
                for metric in metrics:
                    values.setdefault(f"{prefix}{row.name}_{metric}", []).append(row.means()[metric])
        self.average(values)

    def average(self, values: Mapping[str, Sequence[float]]) -> None:
        """Write each figure's mean over seeds, and its spread where there are several."""
        for name, found in values.items():
            self.figures[name] = float(np.mean(found))
            if len(found) > 1:
                self.figures[f"{name}_std"] = float(np.std(found, ddof=1))

    def ratio(self, name: str, over: str, under: str) -> None:
        """Write one figure over another."""
        self.figures[name] = self.figures[over] / max(self.figures[under], 1e-12)


class PartOf:
    """A source around another one, of which it gives items and users, and neither texts nor impressions.

    Args:
        source: the whole.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.config, self.Config = source.config, source.Config
        self.name, self.licence, self.domain = source.name, source.licence, source.domain

    def items(self) -> Iterator[pa.Table]:
        return self._source.items()

    def users(self) -> Iterator[pa.Table]:
        return self._source.users()

    def reviews(self) -> Iterator[pa.Table]:
        return iter(())

    def conversations(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def impressions(self) -> Iterator[pa.Table]:
        return iter(())


class Thinned(PartOf):
    """A source with one user in ten, for quick runs."""

    def _thin(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            users = pc.unique(table["user"]).to_pylist()
            kept = [user for user in users if zlib.crc32(str(user).encode()) % 10 == 0]
            yield table.filter(pc.is_in(table["user"], pa.array(kept, type=table["user"].type)))

    def events(self) -> Iterator[pa.Table]:
        return self._thin(self._source.events())

    def users(self) -> Iterator[pa.Table]:
        return self._thin(self._source.users())

    def impressions(self) -> Iterator[pa.Table]:
        return self._thin(self._source.impressions())


def peak_memory_bytes() -> int:
    """Return the process's largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
