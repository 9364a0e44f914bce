"""Batches and labels as bytes: they come back equal, and what is no message says so."""

import dataclasses

import pytest
import torch

from m6rec.distillation.wire import flatten, pack, rebuild, unpack
from m6rec.errors import DistillationError
from m6rec.tasks.generation.data import GenerationBatch
from m6rec.text.batch import TokenBatch


def tokens(segments=True):
    ids = torch.arange(6).view(2, 3)
    return TokenBatch(ids, ids > 0, ids, ids, ids, ids if segments else None)


@pytest.mark.parametrize("segments", [True, False])
def test_a_batch_comes_back_equal(segments):
    batch = GenerationBatch(tokens(segments), torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([4, 5]))
    found = rebuild(GenerationBatch, unpack(pack(flatten(batch), {}))[0])
    assert flatten(found).keys() == flatten(batch).keys()
    assert all(tensor.equal(flatten(batch)[name]) for name, tensor in flatten(found).items())
    assert (found.tokens.segments is None) == (not segments)


def test_words_and_kinds_of_numbers_come_back():
    tensors = {"half": torch.tensor([1.5]).half(), "none": torch.zeros(0, 3), "flags": torch.tensor([True, False])}
    found, words = unpack(pack(tensors, {"version": "ü", "ask": "{}"}))
    assert words == {"version": "ü", "ask": "{}"}
    assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_what_is_no_message_says_so():
    whole = pack({"x": torch.ones(100)}, {})
    for broken in (b"", b"hello, world", whole[:-1], whole[:20], b"\xff" * 40):
        with pytest.raises(DistillationError, match="no message of tensors"):
            unpack(broken)


def test_a_batch_of_another_task_says_so():
    @dataclasses.dataclass(frozen=True)
    class Other:
        tokens: TokenBatch
        scores: torch.Tensor

    with pytest.raises(DistillationError, match=r"without 'scores', expected Other"):
        rebuild(Other, flatten(GenerationBatch(tokens(), *(torch.tensor([0]),) * 3)))
