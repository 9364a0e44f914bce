"""A teacher as a Ray actor, anywhere in a cluster. Knows no student, window or order."""

from dataclasses import dataclass
from typing import Any

from m6rec.distillation.executors.base import OpenTeacher
from m6rec.distillation.teacher import Teacher, TeacherCard
from m6rec.errors import DistillationError, needs


@dataclass(frozen=True)
class RayConfig:
    """A place in a cluster."""

    address: str | None = None
    """Of the cluster (`ray:auto`, `ray:ray://HOST:10001`); null = the one that is connected, or one on this machine."""
    num_cpus: float = 1.0
    """Cores that the actor reserves. Changes speed only."""
    num_gpus: float = 0.0
    """Accelerators that the actor reserves. Changes speed only."""


class RayExecutor:
    """An actor: Ray places it, watches it and tells of its death.

    Calls are never retried by Ray (``max_task_retries=0``): whether a lost call was done nobody knows, so whoever keeps
    the window asks again and takes the first answer only. A dead actor is not restarted in place either: the pool opens
    another, so that every teacher's answers are told apart.

    Args:
        open_teacher: makes the teacher, in there.
        config: where.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    Config = RayConfig

    def __init__(self, open_teacher: OpenTeacher, config: RayConfig | None = None) -> None:
        self.open_teacher, self.config = open_teacher, config or RayConfig()
        with needs("ray"):
            import ray
        self._ray: Any = ray
        self._actor: Any = None

    def open(self) -> TeacherCard:
        """Start the actor and return the teacher's card."""
        if not self._ray.is_initialized():
            self._ray.init(
                address=self.config.address, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True
            )
        place = self._ray.remote(
            num_cpus=self.config.num_cpus, num_gpus=self.config.num_gpus, max_restarts=0, max_task_retries=0
        )
        self._actor = place(_Actor).remote(self.open_teacher)
        return TeacherCard.load(self._get(self._actor.card.remote()))

    def label(self, request: bytes) -> bytes:
        """Return the packed answer to a packed batch."""
        answer: bytes = self._get(self._actor.label.remote(request))
        return answer

    def close(self) -> None:
        """End the actor."""
        if self._actor is not None and self._ray.is_initialized():
            self._ray.kill(self._actor)

    def _get(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:  # the teacher's own
            raise DistillationError(str(error.cause)) from error
        except errors.RayError as error:
            raise ConnectionError(f"the actor is gone: {error}") from error


class _Actor:
    """What runs in the cluster."""

    def __init__(self, open_teacher: OpenTeacher) -> None:
        self._teacher: Teacher = open_teacher()

    def card(self) -> str:
        return self._teacher.card.dump()

    def label(self, request: bytes) -> bytes:
        return self._teacher.answer(request)
