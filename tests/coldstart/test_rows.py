import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from m6rec.coldstart.rows import UserRow, UserRows
from m6rec.late_interaction.cache import CacheConfig


def row(value, events=3):
    return UserRow(np.full(4, value, np.float32), events)


def test_a_later_row_replaces_the_former_in_memory_and_on_disk(tmp_path):
    path = str(tmp_path / "users.db")
    rows = UserRows("v1", 4, CacheConfig(disk=path))
    rows.put({"ann": row(1.0), "bob": row(2.0, 7)})
    rows.put({"ann": row(3.0, 4)})
    for found in (rows, UserRows("v1", 4, CacheConfig(disk=path))):
        ann, bob, nobody = found.get(["ann", "bob", "eve"])
        assert (ann.numbers.tolist(), ann.events) == ([3.0] * 4, 4)
        assert (bob.numbers.tolist(), bob.events) == ([2.0] * 4, 7)
        assert nobody is None
        found.close()


def test_rows_of_another_fixed_part_are_never_found(tmp_path):
    path = str(tmp_path / "users.db")
    UserRows("v1", 4, CacheConfig(disk=path)).put({"ann": row(1.0)})
    assert UserRows("v2", 4, CacheConfig(disk=path)).get(["ann"]) == [None]


def test_it_is_bounded_in_bytes_and_says_what_a_user_takes():
    rows = UserRows("v1", 4, CacheConfig(memory_bytes=200))
    assert rows.bytes_per_user == 20
    rows.put({f"user{number}": row(1.0) for number in range(50)})
    kept = rows.get([f"user{number}" for number in range(50)])
    assert [found is None for found in kept] == [True] * 40 + [False] * 10
    assert UserRows("v1", 4, CacheConfig(dtype="float16")).bytes_per_user == 10


@pytest.mark.parametrize("events", [0, 1, 20, 10_000])
def test_half_precision_keeps_the_count(events):
    rows = UserRows("v1", 4, CacheConfig(dtype="float16"))
    rows.put({"ann": row(0.3, events)})
    (found,) = rows.get(["ann"])
    assert found.events == pytest.approx(events, rel=1e-3)
    assert found.numbers == pytest.approx(0.3, abs=1e-3)


def test_a_row_of_another_size():
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        UserRows("v1", 3).put({"ann": row(1.0)})


def _write_for_ever(path, started):
    rows = UserRows("v1", 4, CacheConfig(disk=path))
    value = 0
    while True:
        value += 1
        rows.put({name: row(float(value)) for name in ("ann", "bob")})
        started.set()


def test_a_killed_writer_leaves_all_rows_of_a_call_or_none(tmp_path):
    path, context = str(tmp_path / "users.db"), multiprocessing.get_context("fork")
    started = context.Event()
    writer = context.Process(target=_write_for_ever, args=(path, started))
    writer.start()
    assert started.wait(30)
    time.sleep(0.05)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    ann, bob = UserRows("v1", 4, CacheConfig(disk=path)).get(["ann", "bob"])
    assert ann.numbers.tolist() == bob.numbers.tolist()
    assert ann.numbers[0] >= 1
