"""Answers the rows of a part, one request each. Knows neither where parts come from nor where they go."""

from functools import cached_property
from typing import Any

import pyarrow as pa

from m6rec.config import parse
from m6rec.errors import ConfigError, DataError, RowError
from m6rec.loading import load
from m6rec.serving.batch.job import ERROR, BatchJob
from m6rec.serving.batch.parts import Part
from m6rec.serving.batch.works import plain_value


class Clerk:
    """Answers the rows of one job.

    Args:
        job: a settled one.
    """

    def __init__(self, job: BatchJob) -> None:
        self.job, self.recommender = job, load(job.runs[0], *job.runs[1:])
        if job.config.decoding:
            from m6rec.decoding import DecodingConfig

            parse(DecodingConfig, job.config.decoding, "decoding")  # a wrong setting is no fault of a row

    def answer(self, table: pa.Table, part: Part) -> pa.Table:
        """Return the output's rows of one part.

        Raises:
            RowError: a row that cannot be read, unless errors are kept.
        """
        job = self.job
        columns = {name: table[column].to_pylist() for name, column in job.read_as.items()}
        rows = [{name: plain_value(values[index]) for name, values in columns.items()} for index in range(len(table))]
        answers = self._at_once(rows) or [self._answer(row, part.row + index) for index, row in enumerate(rows)]
        kept = [name for name in job.schema.names if name not in self._answered]
        found = pa.Table.from_pylist(answers, schema=pa.schema(job.schema.field(name) for name in self._answered))
        return pa.table([*table.select(kept).columns, *found.columns], names=job.schema.names).cast(job.schema)

    @cached_property
    def _answered(self) -> list[str]:
        return [*self.job.work.answer.names, *([ERROR.name] if self.job.config.keep_errors else [])]

    def _at_once(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """Return the answers of all rows in one pass, where the work has one and no row is at fault."""
        ask_all, missing = self.job.work.ask_all, any(row[name] is None for row in rows for name in self.job.work.needs)
        if ask_all is None or missing:
            return None
        try:
            return ask_all(self.recommender, rows, self.job.config)
        except (ConfigError, DataError):
            return None  # one by one, to say which

    def _answer(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        try:
            return self._ask(row, number)
        except RowError as error:
            if not self.job.config.keep_errors:
                raise
            return {ERROR.name: f"field {error.field!r}: {error.problem}"}

    def _ask(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        job = self.job
        for name in job.work.needs:
            if row[name] is None and name != "history":
                raise RowError(job.source, number, job.read_as[name], "got nothing, expected a value")
        try:
            return job.work.ask(self.recommender, row, job.config)
        except (ConfigError, DataError) as error:  # a text that is too long is a wrong setting to whoever asks for one
            raise RowError(job.source, number, job.read_as[job.work.culprit(row)], str(error)) from error
