"""Mined lists on disk: an interrupted file is made again, and nothing else is."""

import numpy as np
import pytest

from m6rec.errors import RunError
from m6rec.training.lists import ListFolder, Lists

KEY = {"retriever": "a", "depth": 3}


def part(number):
    rng = np.random.default_rng(number)
    ids = rng.integers(0, 9, (4, 4)).astype(np.int32)
    numbers, states = rng.random((4, 4, 2), np.float32), rng.random((4, 5)).astype(np.float16)
    return Lists(np.arange(4) + 4 * number, ids, numbers, states)


def equal(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_read_is_what_was_made(tmp_path):
    folder = ListFolder(tmp_path / "lists", KEY, 3)
    assert folder.fill(part) == 3
    assert equal(folder.read(), Lists.joined([part(number) for number in range(3)]))


def test_interrupted_mining_goes_on(tmp_path):
    whole = ListFolder(tmp_path / "whole", KEY, 3)
    whole.fill(part)

    def stops(number):
        if number == 1:
            raise KeyboardInterrupt
        return part(number)

    with pytest.raises(KeyboardInterrupt):
        ListFolder(tmp_path / "cut", KEY, 3).fill(stops)
    folder = ListFolder(tmp_path / "cut", KEY, 3)
    with pytest.raises(RunError, match="2 of 3 parts are missing or broken"):
        folder.read()
    assert folder.fill(part) == 2
    assert equal(folder.read(), whole.read())


@pytest.mark.parametrize("damage", [b"", b"half of a header"])
def test_a_broken_part_is_made_again(tmp_path, damage):
    folder = ListFolder(tmp_path, KEY, 3)
    folder.fill(part)
    path = tmp_path / "part-00001.safetensors"
    before = path.read_bytes()
    path.write_bytes(damage + before[:100])
    with pytest.raises(RunError, match="part-00001"):
        folder.read()
    made = []
    assert folder.fill(lambda number: (made.append(number), part(number))[1]) == 1
    assert made == [1]
    assert path.read_bytes() == before


def test_processes_share_the_parts(tmp_path):
    counts = [ListFolder(tmp_path, KEY, 5).fill(part, rank, 2) for rank in (0, 1)]
    assert counts == [3, 2]
    assert len(ListFolder(tmp_path, KEY, 5).read()) == 20


def test_lists_of_another_retriever_are_refused(tmp_path):
    ListFolder(tmp_path, KEY, 2).fill(part)
    for key, parts in (({**KEY, "retriever": "b"}, 2), (KEY, 3)):
        with pytest.raises(RunError, match="another retriever"):
            ListFolder(tmp_path, key, parts)
