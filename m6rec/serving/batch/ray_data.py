"""Parts answered by Ray Data's workers, each with the runs in its own memory.

A worker reads its part from the file and keeps the answers in the parts' folder, so all must see the same disk; what
travels is a few numbers a part. The output is the local executor's, byte for byte. Knows no task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from m6rec.errors import DataError
from m6rec.on_ray import answered_on_ray
from m6rec.serving.batch.clerk import Clerk
from m6rec.serving.batch.job import BatchJob
from m6rec.serving.batch.parts import Part, PartsFolder, read_parts


class PartWorker:
    """What Ray Data keeps in a worker: the runs, opened once.

    Args:
        job: a settled one.
    """

    def __init__(self, job: BatchJob) -> None:
        self.job, self.clerk = job, Clerk(job)
        self.folder = PartsFolder(job.out, job.identity())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Answer one part, named by its numbers; return its number, and what is wrong with a row of it."""
        part = Part(**{name: int(values[0]) for name, values in batch.items()})
        problem = ""
        try:
            for _, table in read_parts(self.job.source, [part], self.job.config.part_rows):
                self.folder.keep(part, self.clerk.answer(table, part))
        except DataError as error:  # as a value: Ray would wrap it in three of its own, and start the part again
            problem = str(error)
        return {"number": [part.number], "problem": [problem]}


def finished(job: BatchJob, parts: Sequence[Part]) -> Iterator[Part]:
    """Yield parts as Ray Data's workers have done and kept them, in any order.

    Args:
        job: a settled one.
        parts: those that are missing.

    Raises:
        DataError: a row that cannot be read, unless errors are kept.
        MissingExtraError: Ray is not installed.
    """
    by_number = {part.number: part for part in parts}
    for row in answered_on_ray(PartWorker, (job,), [asdict(part) for part in parts], job.config.workers):
        if row["problem"]:
            raise DataError(row["problem"])
        yield by_number[int(row["number"])]
