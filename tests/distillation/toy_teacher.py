"""A teacher without a model, for what carries batches to it: it doubles what it is given."""

import time

import torch

from m6rec.distillation.teacher import TeacherCard
from m6rec.distillation.wire import pack, unpack
from m6rec.errors import DistillationError

CARD = TeacherCard("v1", "ranking", "words", "yes or no")


class ToyTeacher:
    """Gives twice the numbers of a batch; ``seconds`` in it are slept first, ``fail`` gives a reason instead."""

    card = CARD

    def answer(self, request):
        tensors, words = unpack(request)
        time.sleep(float(words.get("seconds", 0)))
        if "fail" in words:
            return pack({}, {"version": CARD.version, "error": words["fail"]})
        return pack({"scores": tensors["x"] * 2}, {"version": CARD.version})


def open_toy():
    """Return the teacher, as a student's executor asks for it."""
    return ToyTeacher()


def open_nobody():
    """Fail, as a run folder that is not there does."""
    raise DistillationError("no run folder at nowhere")


def request(number=1.0, **words):
    """Return a packed batch of one number."""
    return pack({"x": torch.tensor([number])}, {name: str(value) for name, value in words.items()})
