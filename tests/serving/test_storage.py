import shutil
import socket
import subprocess
import threading
import time

import numpy as np
import pytest

from m6rec.errors import CacheError
from m6rec.late_interaction.cache import CacheConfig, SegmentCache
from m6rec.serving.storage import HotSet, QueryCache, SegmentTiers


def states(number, vectors=4):
    return np.full((vectors, 8), number, np.float32)


def key(number):
    return f"segment {number:05d}".encode()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class TestQueryCache:
    def test_an_answer_is_as_good_as_new_for_its_time_and_of_what_it_was_made_of(self):
        clock = Clock()
        cache = QueryCache(1000, 10.0, clock)
        cache.put(b"q", {"items": [1]}, "r1", 100)
        assert cache.get([b"q"], "r1") == {"items": [1]}
        assert cache.get([b"q"], "r2") is None
        clock.now = 10.1
        assert cache.get([b"q"], "r1") is None
        assert cache.get_stale([b"q"]) == {"items": [1]}
        assert cache.report() == {"hits": 1, "misses": 2, "stale_hits": 1, "used_bytes": 101}

    def test_it_is_bounded_in_bytes_and_forgets_what_was_asked_least_lately(self):
        cache = QueryCache(1000, 10.0, Clock())
        for number in range(3):
            cache.put(b"%d" % number, {"n": number}, 0, 299)
        assert cache.get([b"0"], 0) == {"n": 0}
        cache.put(b"3", {"n": 3}, 0, 299)
        assert cache.used_bytes == 900
        assert cache.get([b"1"], 0) is None
        assert cache.get([b"0"], 0) == {"n": 0}

    def test_one_that_is_too_large_is_not_kept_and_pushes_nothing_out(self):
        cache = QueryCache(1000, 10.0, Clock())
        cache.put(b"small", {"n": 0}, 0, 100)
        cache.put(b"large", {"n": 1}, 0, 2000)
        assert cache.get([b"small"], 0) == {"n": 0}
        assert cache.get([b"large"], 0) is None
        cache.put(b"small", {"n": 2}, 0, 2000)
        assert cache.get([b"small"], 0) is None
        assert cache.used_bytes == 0


class TestHotSet:
    def test_it_takes_what_is_asked_most_as_far_as_it_fits_and_never_changes(self):
        hot = HotSet(3 * states(0).nbytes)
        hot.load((key(number), states(number)) for number in range(9))
        assert len(hot) == 3
        hot.put_many({key(7): states(7)})
        assert set(hot.get_many([key(number) for number in range(9)])) == {key(0), key(1), key(2)}
        assert hot.report() == {"hits": 3, "misses": 6, "used_bytes": hot.limit_bytes}

    def test_readers_see_one_whole_set_while_others_are_loaded(self):
        hot, mixed, stop = HotSet(1 << 20), [], threading.Event()
        keys = [key(number) for number in range(50)]
        hot.load((own, states(0)) for own in keys)

        def read():
            while not stop.is_set():
                values = {float(found[0, 0]) for found in hot.get_many(keys).values()}
                if len(values) != 1:
                    mixed.append(values)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for turn in range(200):
            hot.load((own, states(turn)) for own in keys)
        stop.set()
        for reader in readers:
            reader.join()
        assert mixed == []


class Far:
    """A tier in another process, played by a dictionary."""

    def __init__(self):
        self.held, self.broken = {}, False

    def get_many(self, keys):
        self._check()
        return {own: self.held[own] for own in keys if own in self.held}

    def put_many(self, entries):
        self._check()
        self.held.update(entries)

    def report(self):
        return {"hits": 0, "misses": 0, "used_bytes": 0}

    def _check(self):
        if self.broken:
            raise CacheError("the server is gone")


def found(tiers, *numbers):
    return [None if own is None else float(own[0, 0]) for own in tiers.get_many([key(number) for number in numbers])]


class TestSegmentTiers:
    def test_each_is_asked_what_those_before_it_lack(self, tmp_path):
        hot, far = HotSet(1 << 20), Far()
        hot.load([(key(1), states(1))])
        far.held[key(3)] = states(3)
        tiers = SegmentTiers("v", CacheConfig(disk=str(tmp_path / "disk")), hot, far)
        tiers.put_many({key(2): states(2)})
        assert found(tiers, 1, 2, 3, 4) == [1.0, 2.0, 3.0, None]
        assert found(tiers, 3) == [3.0]
        report = tiers.report()
        assert (report["hot"]["hits"], report["memory"]["hits"]) == (1, 2)
        assert (report["disk"]["misses"], tiers.asked, tiers.held) == (2, 5, 4)
        assert key(2) in far.held

    def test_the_disk_is_there_for_the_next_process_and_for_its_own_version_alone(self, tmp_path):
        config = CacheConfig(disk=str(tmp_path / "disk"))
        SegmentTiers("one", config).put_many({key(1): states(1)})
        assert found(SegmentTiers("one", config), 1) == [1.0]
        assert found(SegmentTiers("other", config), 1) == [None]

    def test_what_is_found_is_what_one_cache_alone_finds(self, tmp_path):
        rng = np.random.default_rng(0)
        tiers = SegmentTiers("v", CacheConfig(memory_bytes=2000, disk=str(tmp_path / "a")), HotSet(500), Far())
        alone = SegmentCache("v", CacheConfig(memory_bytes=1 << 20))
        for _ in range(60):
            numbers = rng.integers(0, 40, 6).tolist()
            keys = [key(number) for number in dict.fromkeys(numbers)]
            for own, one, other in zip(keys, tiers.get_many(keys), alone.get_many(keys), strict=True):
                assert (one is None) == (other is None)
                if one is None:
                    fresh = {own: rng.normal(size=(3, 8)).astype(np.float32)}
                    tiers.put_many(fresh)
                    alone.put_many(fresh)
                else:
                    np.testing.assert_array_equal(one, other)

    def test_a_damaged_file_is_left_out_and_told(self, tmp_path, caplog):
        path = tmp_path / "disk"
        path.write_bytes(b"this is no database" * 50)
        tiers = SegmentTiers("v", CacheConfig(disk=str(path)))
        tiers.put_many({key(1): states(1)})
        assert found(tiers, 1, 2) == [1.0, None]
        assert tiers.failed == ["disk"]
        assert "going on without the disk tier" in caplog.text

    def test_a_disk_that_fails_in_the_middle_costs_what_it_held_and_nothing_else(self, tmp_path):
        config = CacheConfig(memory_bytes=0, disk=str(tmp_path / "disk"))
        tiers = SegmentTiers("v", config)
        tiers.put_many({key(1): states(1)})
        assert found(tiers, 1) == [1.0]
        tiers.close()
        for file in tmp_path.iterdir():
            file.write_bytes(b"\0" * 4096)
        assert found(tiers, 1) == [None]
        assert tiers.put_many({key(1): states(1)})[key(1)].shape == (4, 8)
        assert tiers.failed == ["disk"]

    def test_a_far_tier_that_is_gone_is_left_out(self):
        far = Far()
        tiers = SegmentTiers("v", CacheConfig(), far=far)
        far.broken = True
        assert found(tiers, 1) == [None]
        assert tiers.failed == ["far"]
        tiers.put_many({key(1): states(1)})
        assert found(tiers, 1) == [1.0]

    def test_numbers_that_do_not_fit_are_still_a_mistake(self):
        tiers = SegmentTiers("v", CacheConfig(dtype="float16"))
        with pytest.raises(CacheError, match="float16"):
            tiers.put_many({key(1): states(1e9)})


SERVERS = [path for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]


@pytest.fixture
def server():
    """Return the address of a running Valkey or Redis server of its own."""
    pytest.importorskip("valkey")
    if not SERVERS:
        pytest.skip("no Valkey here; apt-get install valkey-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([SERVERS[0], "--port", str(port), "--save", "", "--bind", "127.0.0.1"], stdout=-3)
    yield f"redis://127.0.0.1:{port}", process
    process.kill()
    process.wait()


def opened(address, version):
    from m6rec.serving.valkey import open_far

    for _ in range(100):
        try:
            return open_far(address, version)
        except CacheError:
            time.sleep(0.05)
    raise AssertionError("the server did not start")


def test_a_valkey_server_shares_states_between_processes_and_may_die(server):
    address, process = server
    one = SegmentTiers("v", CacheConfig(), far=opened(address, "v"))
    one.put_many({key(1): states(1)})
    other = SegmentTiers("v", CacheConfig(), far=opened(address, "v"))
    assert found(other, 1, 2) == [1.0, None]
    assert other.report()["far"] == {"hits": 1, "misses": 1, "used_bytes": 0}
    assert found(SegmentTiers("w", CacheConfig(), far=opened(address, "w")), 1) == [None]
    process.kill()
    process.wait()
    assert found(one, 1, 3) == [1.0, None]
    assert one.failed == ["far"]


class Client:
    """A Valkey client, played by a dictionary."""

    def __init__(self):
        self.held = {}

    def mget(self, keys):
        return [self.held.get(own) for own in keys]

    def mset(self, entries):
        self.held.update(entries)


def test_values_in_a_server_are_checked_and_of_one_version():
    valkey = pytest.importorskip("valkey")
    from m6rec.serving.valkey import ValkeyTier

    client = Client()
    tier = ValkeyTier(client, "v")
    tier.put_many({key(1): states(1), key(2): states(2).astype(np.float16)})
    assert tier.get_many([key(2)])[key(2)].dtype == np.float16
    name = next(name for name in client.held if name.endswith(key(1)))
    client.held[name] = client.held[name][:-1] + b"\x01"
    assert set(tier.get_many([key(1), key(2), key(3)])) == {key(2)}
    for junk in (b"", b"\xff", b"\x05hello", b"\x03a b"):
        client.held[name] = junk
        assert tier.get_many([key(1)]) == {}
    assert ValkeyTier(client, "w").get_many([key(2)]) == {}

    def fail(keys):
        raise valkey.ConnectionError("refused")

    client.mget = fail
    with pytest.raises(CacheError, match="start it, or go on without it"):
        tier.get_many([key(1)])
