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
        answers = []
        for index in range(len(table)):
            row = {name: plain_value(values[index]) for name, values in columns.items()}
            try:
                answers.append(self._ask(row, part.row + index))
            except RowError as error:
                if not job.config.keep_errors:
                    raise
                answers.append({ERROR.name: f"field {error.field!r}: {error.problem}"})
        kept = [name for name in job.schema.names if name not in self._answered]
        found = pa.Table.from_pylist(answers, schema=pa.schema(job.schema.field(name) for name in self._answered))
        return pa.table([*table.select(kept).columns, *found.columns], names=job.schema.names).cast(job.schema)

    @cached_property
    def _answered(self) -> list[str]:
        return [*self.job.work.answer.names, *([ERROR.name] if self.job.config.keep_errors else [])]

    def _ask(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        job = self.job
        for name in job.work.needs:
            if row[name] is None and name != "history":
                raise RowError(job.source, number, job.read_as[name], "got nothing, expected a value")
        try:
            return job.work.ask(self.recommender, row, job.config)
        except (ConfigError, DataError) as error:  # a text that is too long is a wrong setting to whoever asks for one
            raise RowError(job.source, number, job.read_as[job.work.culprit(row)], str(error)) from error
