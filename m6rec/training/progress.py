"""What a person sees of a run: a bar on a terminal, log lines elsewhere, and ``train_log.jsonl`` always.

This module knows no model; it shows numbers.
"""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import progress as bars
from rich.console import Console

logger = logging.getLogger("m6rec.training")


class Progress:
    """A progress bar with loss, throughput and time left; nothing where there is no terminal.

    Args:
        shown: whether this process is the one that talks.
    """

    def __init__(self, shown: bool = True) -> None:
        self.live = shown and sys.stderr.isatty()
        self._bar = bars.Progress(
            bars.TextColumn("step {task.fields[step]}"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("loss {task.fields[loss]:.4f}"),
            bars.TextColumn("{task.fields[rate]:.0f} examples/s"),
            bars.TextColumn("{task.fields[left]} left"),
            console=Console(stderr=True),
            disable=not self.live,
        )
        self._row = self._bar.add_task("train", total=1.0, step=0, loss=float("nan"), rate=0.0, left="?")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, step: int, share: float, loss: float, rate: float, left_seconds: float) -> None:
        """Move the bar.

        Args:
            step: optimiser steps done.
            share: of the training that is done, 0 to 1.
            loss: mean since the last log line.
            rate: examples per second since then.
            left_seconds: expected.
        """
        left = duration(left_seconds)
        self._bar.update(self._row, completed=share, step=step, loss=loss, rate=rate, left=left)


class TrainLog:
    """One JSON object a line, appended; also handed to ``logging`` where no bar is shown.

    Args:
        path: the file.
        written: whether this process is the one that writes.
        spoken: whether lines also go to ``logging``.
    """

    def __init__(self, path: Path, written: bool = True, spoken: bool = True) -> None:
        self.path, self.written, self.spoken = path, written, spoken

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. A log that cannot be written is no reason to lose a run: it is said once, and left."""
        if self.spoken:
            logger.info("%s", "  ".join(f"{name} {_short(value)}" for name, value in record.items()))
        if not self.written:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            self.written = False
            logger.warning("cannot write %s: %s; training goes on without it", self.path, error)


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds.

    >>> duration(3725.2)
    '1:02:05'
    """
    if seconds != seconds or seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {_short(item)}" for name, item in value.items())
    return f"{value:.5g}" if isinstance(value, float) else str(value)
