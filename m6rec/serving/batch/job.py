"""One job of offline scoring: its file, its runs, what is asked, and the columns that come of it. Knows no model."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from m6rec.data.manifest import sha256
from m6rec.edge.folder import CARD_FILE as EDGE_CARD_FILE
from m6rec.edge.folder import is_edge
from m6rec.errors import ConfigError, DataError
from m6rec.hub.transfer import locate
from m6rec.runs import CARD_FILE, read_card
from m6rec.serving.batch.config import BatchConfig
from m6rec.serving.batch.parts import open_parquet
from m6rec.serving.batch.works import Work, usual_work, work_called

ERROR = pa.field("error", pa.string())
# Of the settings, those that no answer depends on.
_SPEED_ONLY = ("executor", "workers")


@dataclass(frozen=True)
class BatchJob:
    """Requests in a file, and what answers them.

    Args:
        runs: folders or Hub names, as :func:`m6rec.load` takes them; the first one says what is usually asked.
        source: a parquet file, a request a row. What is not read goes along into the output.
        out: the output file; beside it, ``OUT.parts`` holds what is done, until all is.
        config: what is asked, and how.
    """

    runs: tuple[str, ...]
    source: Path
    out: Path
    config: BatchConfig = dataclasses.field(default_factory=BatchConfig)

    def settled(self) -> "BatchJob":
        """Return the job with nothing left open: runs as folders, and what is asked of them.

        Raises:
            RunError: a folder is no finished run.
            UnknownNameError: no such work.
        """
        folders = tuple(str(locate(run)) for run in self.runs)
        work, kind = usual_work(Path(folders[0]))
        chosen = self.config.work or work
        work_called(chosen)
        config = dataclasses.replace(self.config, work=chosen, kind=self.config.kind or kind)
        return dataclasses.replace(self, runs=folders, config=config)

    @property
    def work(self) -> Work:
        """What is asked."""
        return work_called(str(self.config.work))

    @cached_property
    def read_as(self) -> dict[str, str]:
        """What is read -> the column's name in the file.

        Raises:
            ConfigError: a name that is read by nobody.
            DataError: the file lacks a column.
        """
        work, named = self.work, self.config.columns
        if strange := sorted(set(named) - set(work.reads)):
            raise ConfigError(f"columns: got {', '.join(strange)}, expected some of {', '.join(work.reads)}")
        present = open_parquet(self.source).schema_arrow.names
        wanted = {name: named.get(name, name) for name in work.reads}
        lacking = [name for name in (*work.needs, *named) if wanted[name] not in present]
        if lacking:
            missing = ", ".join(repr(wanted[name]) for name in dict.fromkeys(lacking))
            raise DataError(
                f"{self.source} lacks {missing}, which {self.config.work} needs; it has {', '.join(present)}; "
                f"name the right one with --column {lacking[0]}=NAME"
            )
        return {name: column for name, column in wanted.items() if column in present}

    @cached_property
    def schema(self) -> pa.Schema:
        """The output's columns: those of the file that are not read, the answer, and errors where they are kept.

        Raises:
            DataError: a column of the file bears the name of one of the answer's.
        """
        kept = [field for field in open_parquet(self.source).schema_arrow if field.name not in self.read_as.values()]
        answer = [*self.work.answer, *([ERROR] if self.config.keep_errors else [])]
        if twice := {field.name for field in kept} & {field.name for field in answer}:
            raise DataError(
                f"{self.source} has the columns {', '.join(sorted(twice))}, which is where answers go; rename them"
            )
        return pa.schema([*kept, *answer])

    def identity(self) -> dict[str, Any]:
        """Return everything that answers and parts depend on."""
        settings = {
            field.name: getattr(self.config, field.name)
            for field in dataclasses.fields(self.config)
            if field.name not in _SPEED_ONLY
        }
        return {"source": sha256(self.source), "runs": [_version(Path(run)) for run in self.runs], **settings}


def _version(run: Path) -> str:
    """Return a hash that changes when a run is trained again."""
    if not is_edge(run):
        read_card(run)  # says what is wrong with a folder that is no run
    return sha256(run / (EDGE_CARD_FILE if is_edge(run) else CARD_FILE))
