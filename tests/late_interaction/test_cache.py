import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from m6rec.errors import CacheError
from m6rec.late_interaction.cache import CacheConfig, SegmentCache, segment_key

SIZE = 4 * 8 * 4  # bytes of one value below


def value(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(4, 8)).astype(np.float32)


def key(number: int) -> bytes:
    return segment_key(np.array([number]), False)


def entries(*numbers: int) -> dict[bytes, np.ndarray]:
    return {key(number): value(number) for number in numbers}


def cache(path=None, version: str = "one", **settings) -> SegmentCache:
    return SegmentCache(version, CacheConfig(disk=None if path is None else str(path), **settings))


def test_what_is_put_is_found_in_the_order_that_is_asked() -> None:
    held = cache()
    held.put_many(entries(1, 2))
    first, missing, second = held.get_many([key(2), key(3), key(1)])
    np.testing.assert_array_equal(first, value(2))
    np.testing.assert_array_equal(second, value(1))
    assert missing is None
    assert not first.flags.writeable
    assert held.get_many([]) == []


def test_the_region_is_part_of_the_key() -> None:
    assert segment_key(np.array([7]), False) != segment_key(np.array([7]), True)
    assert segment_key(np.array([7]), False) != segment_key(np.array([7, 8]), False)


def test_the_least_recently_used_go_first_and_the_bytes_are_bounded() -> None:
    held = cache(memory_bytes=3 * SIZE)
    held.put_many(entries(1, 2, 3))
    held.get_many([key(1)])
    held.put_many(entries(4))
    assert [states is not None for states in held.get_many([key(n) for n in (1, 2, 3, 4)])] == [True, False, True, True]
    assert (held.used_bytes, len(held), held.stats.evictions) == (3 * SIZE, 3, 1)


def test_a_value_that_is_too_large_is_not_kept() -> None:
    held = cache(memory_bytes=SIZE - 1)
    held.put_many(entries(1))
    assert (held.used_bytes, len(held)) == (0, 0)


def test_put_again_is_counted_once() -> None:
    held = cache()
    held.put_many(entries(1))
    held.put_many(entries(1))
    assert (held.used_bytes, len(held)) == (SIZE, 1)


def test_pinned_segments_stay_and_what_is_let_go_may_leave() -> None:
    held = cache(memory_bytes=2 * SIZE)
    held.put_many(entries(1))
    held.pin([key(1), key(2)])
    held.put_many(entries(2))  # to come included
    held.put_many(entries(3, 4))
    assert held.get_many([key(1)])[0] is not None
    assert held.get_many([key(2)])[0] is not None
    assert held.used_bytes == 2 * SIZE
    held.pin([])
    held.put_many(entries(5, 6))
    assert held.get_many([key(1), key(2)]) == [None, None]


def test_a_hot_set_that_does_not_fit_is_told() -> None:
    held = cache(memory_bytes=SIZE)
    held.pin([key(1), key(2)])
    held.put_many(entries(1))
    with pytest.raises(CacheError, match="pin fewer segments"):
        held.put_many(entries(2))


def test_statistics_tell_memory_from_disk_and_from_nothing(tmp_path) -> None:
    held = cache(tmp_path / "states", memory_bytes=SIZE)
    assert held.stats.hit_rate == 0
    held.put_many(entries(1, 2))
    held.get_many([key(2), key(1), key(3)])
    stats = held.stats
    assert (stats.memory_hits, stats.disk_hits, stats.misses) == (1, 1, 1)
    assert stats.hit_rate == pytest.approx(2 / 3)
    held.get_many([key(1)])  # it came to memory
    assert stats.memory_hits == 2


def test_half_precision_takes_half_the_bytes_and_refuses_what_it_cannot_hold(tmp_path) -> None:
    held = cache(tmp_path / "states", dtype="float16")
    held.put_many(entries(1))
    assert held.used_bytes == SIZE // 2
    np.testing.assert_allclose(held.get_many([key(1)])[0], value(1), atol=2e-3)
    again = cache(tmp_path / "states", dtype="float16")
    assert again.get_many([key(1)])[0].dtype == np.float16
    with pytest.raises(CacheError, match="dtype=float32"):
        held.put_many({key(2): np.full((1, 2), 1e5, np.float32)})


class TestDisk:
    def test_another_process_finds_what_was_written(self, tmp_path) -> None:
        cache(tmp_path / "states").put_many(entries(1, 2))
        held = cache(tmp_path / "states")
        np.testing.assert_array_equal(held.get_many([key(2)])[0], value(2))
        assert held.stats.disk_hits == 1

    def test_other_versions_are_never_found_and_can_be_dropped(self, tmp_path) -> None:
        old, new = cache(tmp_path / "states", "old"), cache(tmp_path / "states", "new")
        old.put_many(entries(1))
        assert new.get_many([key(1)]) == [None]
        new.put_many(entries(2))
        new.invalidate()
        assert cache(tmp_path / "states", "old").get_many([key(1)]) == [None]
        assert cache(tmp_path / "states", "new").get_many([key(2)])[0] is not None

    def test_bytes_are_bounded_and_the_first_written_go(self, tmp_path) -> None:
        held = cache(tmp_path / "states", memory_bytes=0, disk_bytes=100_000)
        for start in range(0, 40, 4):
            held.put_many({key(n): np.full((4, 256), n, np.float32) for n in range(start, start + 4)})
        assert held._disk.used_bytes <= 100_000
        found = [states is not None for states in held.get_many([key(n) for n in range(40)])]
        assert found == sorted(found)
        assert 10 < sum(found) < 40

    def test_many_keys_at_once(self, tmp_path) -> None:
        held = cache(tmp_path / "states", memory_bytes=0)
        held.put_many(entries(*range(1200)))
        assert all(states is not None for states in held.get_many([key(n) for n in range(1200)]))

    def test_readers_and_a_writer_at_the_same_time(self, tmp_path) -> None:
        held, wrong = cache(tmp_path / "states", memory_bytes=20 * SIZE), []

        def use(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(25):
                numbers = rng.integers(60, size=8).tolist()
                held.put_many(entries(*numbers[:3]))
                for number, states in zip(numbers, held.get_many([key(n) for n in numbers]), strict=True):
                    if states is not None and not np.array_equal(states, value(number)):
                        wrong.append(number)
            held.close()

        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert held.used_bytes <= 20 * SIZE
        assert held.stats.memory_hits + held.stats.disk_hits + held.stats.misses == 6 * 25 * 8

    def test_a_killed_writer_leaves_a_readable_file(self, tmp_path) -> None:
        script = """
import sys
import numpy as np
from m6rec.late_interaction.cache import CacheConfig, SegmentCache, segment_key
held = SegmentCache("one", CacheConfig(disk=sys.argv[1]))
for n in range(100_000):
    held.put_many({segment_key(np.array([n]), False): np.full((4, 512), n, np.float32)})
"""
        path = tmp_path / "states"
        writer = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=os.getcwd())
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (
                path.exists()
                and path.with_name("states-wal").exists()
                and path.with_name("states-wal").stat().st_size > 1e6
            ):
                break
            time.sleep(0.02)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        held = cache(path)
        count = len(held._disk)
        assert count > 5
        for number, states in enumerate(held.get_many([key(n) for n in range(count)])):
            np.testing.assert_array_equal(states, np.full((4, 512), number, np.float32))
        held.put_many(entries(7_000_000))

    @pytest.mark.parametrize("left", [10, 5_000, 20_000])
    def test_a_truncated_file_is_told(self, tmp_path, left: int) -> None:
        held = cache(tmp_path / "states")
        held.put_many({key(n): np.full((4, 256), n, np.float32) for n in range(20)})
        held._disk._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        held.close()
        data = (tmp_path / "states").read_bytes()
        assert len(data) > 40_000
        (tmp_path / "states").write_bytes(data[:left])
        with pytest.raises(CacheError, match="remove the file"):
            cache(tmp_path / "states").get_many([key(n) for n in range(20)])

    def test_a_flipped_byte_is_told(self, tmp_path) -> None:
        held = cache(tmp_path / "states")
        held.put_many({key(1): np.full((4, 256), 1.5, np.float32)})
        held._disk._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        held.close()
        data = bytearray((tmp_path / "states").read_bytes())
        data[data.rindex(np.float32(1.5).tobytes() * 4)] ^= 1
        (tmp_path / "states").write_bytes(data)
        with pytest.raises(CacheError, match="differs from its checksum"):
            cache(tmp_path / "states").get_many([key(1)])

    def test_strangers_files_are_refused_and_left_alone(self, tmp_path) -> None:
        (tmp_path / "words").write_text("no database, and long enough to be read as a header of one" * 10)
        with pytest.raises(CacheError, match="cannot be used as a segment cache"):
            cache(tmp_path / "words")
        theirs = sqlite3.connect(tmp_path / "theirs")
        theirs.execute("CREATE TABLE orders (id INTEGER)")
        theirs.close()
        with pytest.raises(CacheError, match="name another file"):
            cache(tmp_path / "theirs")

    def test_a_folder_that_cannot_be_made_is_told(self, tmp_path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CacheError, match="cannot be used"):
            cache(tmp_path / "file" / "states")
