"""What an executor is: one teacher somewhere, asked for one batch at a time. Knows no executor."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from m6rec.distillation.teacher import Teacher, TeacherCard

OpenTeacher = Callable[[], Teacher]
"""Makes the teacher in the place where it runs; it travels there by name: a module's function, or a partial of one."""


@runtime_checkable
class Executor(Protocol):
    """One teacher somewhere.

    ``open`` and ``label`` block, and are called from one thread; ``close`` may come from another and ends them.
    """

    def open(self) -> TeacherCard:
        """Bring the teacher up and return its card.

        Raises:
            ConnectionError: it cannot be reached, or died on the way.
            DistillationError: it cannot be opened.
        """

    def label(self, request: bytes) -> bytes:
        """Return the packed answer to a packed batch.

        Raises:
            ConnectionError: the teacher is gone; whether it did the work, nobody knows.
        """

    def close(self) -> None:
        """Let the teacher go; calling it twice is no mistake."""
