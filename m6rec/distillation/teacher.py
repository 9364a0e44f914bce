"""A teacher: a trained task on its backbone that labels batches, bytes in and bytes out. Knows no transport."""

import dataclasses
import hashlib
import json
from typing import Any

import torch

from m6rec.backbones.base import Backbone
from m6rec.distillation.lessons import LESSONS, Ask, Labels
from m6rec.distillation.wire import flatten, pack, rebuild, unpack
from m6rec.errors import DistillationError, M6RecError
from m6rec.tasks.base import Task

# What a broken batch, or a lack of memory, makes torch and our own code raise.
_BROKEN = (M6RecError, RuntimeError, ValueError, IndexError, KeyError, TypeError, AssertionError)


@dataclasses.dataclass(frozen=True)
class TeacherCard:
    """What a student has to know before it believes a teacher.

    Args:
        version: of its weights.
        task: what it does.
        tokenizer: hash of its vocabulary.
        space: what its labels are about, in words.
    """

    version: str
    task: str
    tokenizer: str
    space: str

    def dump(self) -> str:
        """Return the card as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str | bytes) -> "TeacherCard":
        """Return what :meth:`dump` wrote.

        Raises:
            DistillationError: no such card.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise DistillationError(f"got no teacher's card ({error}); is that address a teacher's?") from error

    def mismatch(self, wanted: "TeacherCard") -> str | None:
        """Return why a student that wants ``wanted`` cannot learn here; versions are another matter."""
        for name in ("task", "tokenizer", "space"):
            if (got := getattr(self, name)) != (expected := getattr(wanted, name)):
                return f"another {name} (got {got!r}, expected {expected!r})"
        return None


def card_of(task: Task, backbone: Backbone, version: str = "") -> TeacherCard:
    """Return the card of a task on its backbone: a teacher's own, or what a student wants of one.

    Raises:
        DistillationError: a task that nothing can be taught to.
    """
    if task.name not in LESSONS:
        raise DistillationError(f"got a teacher of task {task.name!r}, expected one of {', '.join(sorted(LESSONS))}")
    lesson = LESSONS[task.name](Ask(LESSONS[task.name].taught[0], 1.0, 1))
    words = sorted((number, word) for word, number in backbone.tokenizer.get_vocab().items())
    tokens = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
    return TeacherCard(version, task.name, tokens, lesson.space(task, backbone))


class Teacher:
    """Labels batches.

    Args:
        task: trained.
        backbone: tuned.
        version: of the weights; every label carries it.
        bf16: whether to compute in bfloat16.
    """

    def __init__(self, task: Task, backbone: Backbone, version: str, bf16: bool = False) -> None:
        self.task, self.backbone, self.bf16 = task.eval(), backbone.eval(), bf16
        self.card = card_of(task, backbone, version)
        self._device = next(backbone.parameters()).device

    def label(self, batch: Any, ask: Ask) -> Labels:
        """Return the labels of one batch."""
        lesson = LESSONS[self.task.name](ask)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return lesson.label(self.task, self.backbone, batch.to(self._device))

    def answer(self, request: bytes) -> bytes:
        """Return the labels of a packed batch, packed; or, packed as well, why there are none."""
        try:
            tensors, words = unpack(request)
            ask = Ask.read(words)
            kind = LESSONS[self.task.name](ask).batch_type(self.task)
            return pack(self.label(rebuild(kind, tensors), ask), {"version": self.card.version})
        except _BROKEN as error:
            return pack({}, {"version": self.card.version, "error": f"{type(error).__name__}: {error}"})


def request_of(batch: Any, ask: Ask) -> bytes:
    """Return a batch as a teacher is asked about it."""
    return pack(flatten(batch), ask.words())


def read_answer(answer: bytes) -> tuple[Labels, str]:
    """Return labels and the version of the teacher that gave them.

    Raises:
        DistillationError: no labels, but the reason why.
    """
    tensors, words = unpack(answer)
    if "error" in words:
        raise DistillationError(words["error"])
    return tensors, words.get("version", "")
