"""A teacher in a process of its own on this machine. Knows no student, window or order."""

import contextlib
import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from m6rec.distillation.executors.base import OpenTeacher
from m6rec.distillation.teacher import TeacherCard
from m6rec.errors import DistillationError, M6RecError

# What tells a process of a launched student that it is one of several, which its teachers are not.
_LAUNCHED = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)
# Before a message: whether it is a card or answer, or the reason why there is none.
_GOOD, _BAD = b"+", b"-"
_SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class LocalConfig:
    """A process."""

    threads: int = 1
    """Threads that the teacher computes on (`local:4`). Changes speed only."""


class LocalExecutor:
    """A process of its own on this machine, spoken to through a pipe.

    The pipe is the heartbeat: when the process dies, however it dies, the kernel closes its end and the waiting student
    learns at once. When the student dies, its teachers read the end of the pipe and leave.

    Args:
        open_teacher: makes the teacher, in there.
        config: threads.
    """

    Config = LocalConfig

    def __init__(self, open_teacher: OpenTeacher, config: LocalConfig | None = None) -> None:
        self.open_teacher, self.config = open_teacher, config or LocalConfig()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Number of the process; ``None`` = not started."""
        return None if self._process is None else self._process.pid

    def open(self) -> TeacherCard:
        """Start the process and return the teacher's card."""
        context = _context(self.open_teacher)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, self.open_teacher, self.config.threads), name="teacher", daemon=True
        )
        self._process.start()
        theirs.close()  # or the pipe would never end
        return TeacherCard.load(self._receive())

    def label(self, request: bytes) -> bytes:
        """Return the packed answer to a packed batch."""
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(request)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"process {self.pid} is gone") from error
        return self._receive()

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join(_SECONDS_TO_END)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()

    def _receive(self) -> bytes:
        assert self._pipe is not None
        try:
            message = self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise ConnectionError(f"process {self.pid} died") from error
        if message[:1] == _BAD:
            raise DistillationError(message[1:].decode())
        return message[1:]


def _context(open_teacher: OpenTeacher) -> Any:
    """Return how processes are started.

    Never by a fork of the student, whose threads or GPU may hang it for ever. Where there can be a fork server, it
    loads the libraries once (seconds) and every teacher, also one in the place of a dead one, is a fork of that.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(open_teacher, "func", open_teacher).__module__])
    return context


def _work(pipe: Connection, open_teacher: OpenTeacher, threads: int) -> None:
    """Open the teacher and answer until the student is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the student's: it saves, then lets its teachers go
    for name in _LAUNCHED:
        os.environ.pop(name, None)
    import torch  # after the environment is cleared

    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError):
        try:
            teacher = open_teacher()
        except M6RecError as error:
            pipe.send_bytes(_BAD + str(error).encode())
            return
        pipe.send_bytes(_GOOD + teacher.card.dump().encode())
        while True:
            pipe.send_bytes(_GOOD + teacher.answer(pipe.recv_bytes()))
