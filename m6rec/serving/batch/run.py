"""A job of offline scoring, end to end: what is missing is answered and kept, then all is joined. Knows no model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from m6rec.errors import ConfigError
from m6rec.serving.batch.clerk import Clerk
from m6rec.serving.batch.job import BatchJob
from m6rec.serving.batch.parts import Part, PartsFolder, cut, open_parquet, read_parts

Show = Callable[[int, int], None]


@dataclass(frozen=True)
class Done:
    """What a job came to.

    Args:
        rows: of the output.
        kept: of these, rows that an earlier start of the job had answered.
    """

    rows: int
    kept: int


def run_batch(job: BatchJob, show: Show) -> Done:
    """Answer every row of a file; a job that was cut goes on where it stopped, with the same output.

    Args:
        job: what to do.
        show: called with (rows that are done, rows in all) after each part.

    Raises:
        DataError: the file, or a row of it (:class:`RowError`), cannot be read.
        RunError: a run is none, or cannot do what is asked.
        ConfigError: wrong settings, or parts of another job are in the way.
        MissingExtraError: Ray is not installed.
    """
    job = job.settled()
    if job.source.resolve() == job.out.resolve():
        raise ConfigError(f"got {job.source} as input and output, expected two files")
    with open_parquet(job.source) as file:
        parts = cut(file, job.config.part_rows)
    schema = job.schema
    folder = PartsFolder(job.out, job.identity())
    missing = folder.missing(parts)
    total, left = sum(part.rows for part in parts), sum(part.rows for part in missing)
    done = kept = total - left
    show(done, total)
    for part in _finished(job, missing, folder):
        done += part.rows
        show(done, total)
    return Done(folder.join(parts, schema), kept)


def _finished(job: BatchJob, parts: Sequence[Part], folder: PartsFolder) -> Iterator[Part]:
    """Yield parts as they are done and kept, by the executor that the job names."""
    if not parts:
        return
    if job.config.executor == "ray":
        from m6rec.serving.batch.ray_data import finished

        yield from finished(job, parts)
        return
    clerk = Clerk(job)
    for part, table in read_parts(job.source, parts, job.config.part_rows):
        folder.keep(part, clerk.answer(table, part))
        yield part
