"""The pool and its roster over threads: who is free takes, who dies is told, who is written down comes."""

import threading
import time

import pytest

from m6rec.distillation import roster
from m6rec.distillation.executors.local import LocalConfig, LocalExecutor
from m6rec.distillation.executors.remote import RemoteExecutor
from m6rec.distillation.pool import Answered, Gone, Joined, TeacherPool, Took
from m6rec.distillation.roster import Roster, make_executor
from m6rec.errors import ConfigError, DistillationError, UnknownNameError
from tests.distillation.toy_teacher import CARD, open_toy


class Threaded:
    """An executor whose teacher is this object: it answers once it may, or dies."""

    def __init__(self, gate=None, dies=False, opens=True):
        self.gate, self.dies, self.opens, self.closed = gate, dies, opens, 0
        self.labelled = []

    def open(self):
        if not self.opens:
            raise DistillationError("no memory")
        return CARD

    def label(self, request):
        if self.gate is not None:
            self.gate.wait(20)
        if self.dies:
            raise ConnectionError("it died")
        self.labelled.append(request)
        return request

    def close(self):
        self.closed += 1


def gather(pool, wanted, kind):
    """Return events until ``wanted`` of a kind are there."""
    found, end = [], time.monotonic() + 20
    while sum(isinstance(event, kind) for event in found) < wanted:
        assert time.monotonic() < end, found
        found += pool.results(0.05)
    return found


@pytest.fixture
def pool():
    pool = TeacherPool()
    yield pool
    pool.close()


def test_the_lowest_task_goes_first_and_everyone_takes(pool):
    gate = threading.Event()
    slow, quick = Threaded(gate), Threaded()
    for task in (3, 1, 2):
        pool.submit(task, b"%d" % task)
    pool.add("slow", slow)
    gather(pool, 1, Took)
    pool.add("quick", quick)
    found = gather(pool, 2, Answered)
    assert sorted(pool.alive()) == ["quick", "slow"]
    assert [event.task for event in found if isinstance(event, Answered)] == [2, 3]
    gate.set()
    found = gather(pool, 1, Answered)
    assert [(event.task, event.answer, event.teacher) for event in found if isinstance(event, Answered)] == [
        (1, b"1", "slow")
    ]


def test_a_death_is_told_with_its_reason(pool):
    pool.add("a", Threaded(dies=True))
    pool.submit(7, b"")
    found = gather(pool, 1, Gone)
    assert [type(event) for event in found] == [Joined, Took, Gone]
    assert found[-1].reason == "it died"
    assert pool.alive() == []


def test_who_does_not_come_up_is_told(pool):
    executor = Threaded(opens=False)
    pool.add("a", executor)
    assert gather(pool, 1, Gone)[-1].reason == "no memory"
    assert executor.closed


def test_who_is_removed_finishes_first(pool):
    gate = threading.Event()
    pool.add("a", Threaded(gate))
    pool.submit(1, b"one")
    gather(pool, 1, Took)
    pool.remove("a")
    assert pool.alive() == []
    gate.set()
    found = gather(pool, 1, Gone)
    assert [event.answer for event in found if isinstance(event, Answered)] == [b"one"]
    assert found[-1].reason == "removed"


def test_what_is_cleared_is_not_done(pool):
    for task in range(5):
        pool.submit(task, b"")
    pool.clear()
    executor = Threaded()
    pool.add("a", executor)
    gather(pool, 1, Joined)
    pool.submit(9, b"nine")
    gather(pool, 1, Answered)
    assert executor.labelled == [b"nine"]


class TestRoster:
    @pytest.fixture
    def made(self, monkeypatch, tmp_path):
        """Return a maker of rosters of threads; `mortal` ones die at their first task."""
        monkeypatch.setattr(roster, "LOOK_SECONDS", 0.0)
        monkeypatch.setattr(roster, "RETRY_SECONDS", 0.05)
        opened = []

        def make(word, open_teacher):
            return Threaded(dies=word == "mortal")

        def build(*words):
            opened.append(Roster(tmp_path / "teachers.txt", words, open_toy, make))
            return opened[-1]

        yield build
        for each in opened:
            each.close()

    def test_the_file_says_who_comes_and_who_goes(self, made, tmp_path):
        kept = made("a", "a")
        gather(kept, 2, Joined)
        assert len(kept.alive()) == 2
        (tmp_path / "teachers.txt").write_text("a\n# a\nb  # another machine\n")
        gather(kept, 1, Joined)
        gather(kept, 1, Gone)
        assert sorted(name.partition("#")[0] for name in kept.alive()) == ["a", "b"]

    def test_who_dies_is_brought_up_again_under_another_name(self, made):
        kept = made("mortal")
        names = set()
        for task in range(3):
            kept.submit(task, b"")
            names |= {event.teacher for event in gather(kept, 1, Gone)}
        assert len(names) == 3

    def test_who_is_not_believed_stays_away(self, made):
        kept = made("a")
        gather(kept, 1, Joined)
        kept.remove(kept.alive()[0])
        gather(kept, 1, Gone)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            assert not [event for event in kept.results(0.02) if isinstance(event, Joined)]

    def test_a_file_that_is_there_is_kept(self, made, tmp_path):
        (tmp_path / "teachers.txt").write_text("b\n")
        kept = made("a")
        gather(kept, 1, Joined)
        assert kept.alive() == ["b#1.1"]


def test_words_name_executors():
    local = make_executor("local:3", open_toy)
    assert isinstance(local, LocalExecutor)
    assert local.config == LocalConfig(threads=3)
    remote = make_executor("remote:http://10.0.0.3:8100", open_toy)
    assert isinstance(remote, RemoteExecutor)
    assert remote.config.url == "http://10.0.0.3:8100"
    with pytest.raises(UnknownNameError, match="did you mean remote"):
        make_executor("remot", open_toy)
    with pytest.raises(ConfigError, match="expected int"):
        make_executor("local:many", open_toy)
    with pytest.raises(ConfigError, match=r"missing setting 'teacher remote\.url'"):
        make_executor("remote", open_toy)
