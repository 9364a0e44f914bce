"""Which teachers there should be: a text file, one a line, that may be edited while students learn.

Lines name executors (``local``, ``ray``, ``remote:http://HOST:PORT``). Whoever is written there and not up is brought
up, again and again if need be; whoever is not written there any more goes. It is no registry: nobody reports to it.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from m6rec.config import parse, read_word
from m6rec.distillation.executors import EXECUTORS
from m6rec.distillation.executors.base import Executor, OpenTeacher
from m6rec.distillation.pool import Event, Gone, TeacherPool

MakeExecutor = Callable[[str, OpenTeacher], Executor]
# Between a teacher's death and the next try, and between two looks at the file.
RETRY_SECONDS, LOOK_SECONDS = 5.0, 1.0


def make_executor(word: str, open_teacher: OpenTeacher) -> Executor:
    """Return the executor that a word names; what stands behind a colon is its first setting.

    Raises:
        UnknownNameError: no such executor.
        ConfigError: a setting that it has not got.
        MissingExtraError: it needs a package that is not installed.
    """
    name, _, setting = word.partition(":")
    kind = EXECUTORS.load(name)
    first = dataclasses.fields(kind.Config)[0].name
    value = setting if "//" in setting else read_word(setting)
    executor: Executor = kind(open_teacher, parse(kind.Config, {first: value} if setting else {}, f"teacher {word}"))
    return executor


class Roster(TeacherPool):
    """A pool that keeps itself as a file says.

    Args:
        path: the file; written with ``words`` where it is not there.
        words: teachers to begin with.
        open_teacher: makes a teacher where it runs.
        make: word -> executor.
    """

    def __init__(
        self,
        path: Path,
        words: tuple[str, ...],
        open_teacher: OpenTeacher,
        make: MakeExecutor = make_executor,
    ) -> None:
        super().__init__()
        self.path, self._open_teacher, self._make = path, open_teacher, make
        for word in words:
            make(word, open_teacher)  # a wrong word is told at once
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        self._slot_of: dict[str, str] = {}
        self._refused: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._count, self._next_look = 0, 0.0
        self._keep()

    def results(self, timeout: float) -> list[Event]:
        """Return what teachers have done; bring up and let go whoever the file says."""
        self._keep()
        events = super().results(timeout)
        for event in events:
            if isinstance(event, Gone) and event.teacher in self._slot_of:
                self._not_before[self._slot_of.pop(event.teacher)] = time.monotonic() + RETRY_SECONDS
        return events

    def remove(self, name: str) -> None:
        """Let a teacher go, and nobody into its place: it was not believed."""
        if name in self._slot_of:
            self._refused.add(self._slot_of[name])
        super().remove(name)

    def _keep(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        wanted = self._wanted()
        for name, slot in list(self._slot_of.items()):
            if slot not in wanted:
                super().remove(name)
        up = set(self._slot_of.values())
        for slot, word in wanted.items():
            if slot not in up and slot not in self._refused and now >= self._not_before.get(slot, 0.0):
                self._count += 1
                name = f"{slot}.{self._count}"  # a new name each time: late answers are told apart
                self._slot_of[name] = slot
                self.add(name, self._make(word, self._open_teacher))

    def _wanted(self) -> dict[str, str]:
        """Return slot -> word, as the file has it now."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        seen: Counter[str] = Counter()
        wanted = {}
        for line in lines:
            if word := line.partition("#")[0].strip():
                seen[word] += 1
                wanted[f"{word}#{seen[word]}"] = word
        return wanted
