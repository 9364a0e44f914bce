"""What was acknowledged is there again, whatever happened in between."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m6rec.errors import JournalError
from m6rec.serving import journal as journals
from m6rec.serving.journal import Journal
from tests.serving import journal_writer


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path)
    yield made
    made.close()


def reopened(journal):
    """Return the changes that a process after this one finds, and go on as that one."""
    journal.close()
    journal.__init__(journal.folder)
    return list(journal.replay())


CHANGES = [{"put": [{"id": "a", "title": "Łamp\n\u2028 ☃"}]}, {"remove": ["a", "b"]}]


class TestAppend:
    def test_what_was_appended_is_read_again_in_order(self, journal):
        journal.append(CHANGES[:1])
        journal.append([])
        journal.append(CHANGES[1:])
        assert reopened(journal) == CHANGES

    @pytest.mark.parametrize("torn", [1, 9, 20])
    def test_a_torn_end_is_dropped_and_written_over(self, journal, torn):
        journal.append(CHANGES)
        size = journal.size_bytes
        path = next(journal.folder.glob("*.journal"))
        path.write_bytes(path.read_bytes() + path.read_bytes()[:torn])
        assert reopened(journal) == CHANGES
        assert journal.size_bytes == size
        journal.append(CHANGES[:1])
        assert reopened(journal) == [*CHANGES, CHANGES[0]]

    def test_damage_in_the_middle_is_said_and_nothing_is_dropped(self, journal):
        journal.append(CHANGES)
        path = next(journal.folder.glob("*.journal"))
        words = bytearray(path.read_bytes())
        words[20] ^= 1
        path.write_bytes(words)
        with pytest.raises(JournalError, match="damaged at byte 0"):
            list(journal.replay())
        assert path.read_bytes() == words

    def test_one_process_at_a_time(self, journal):
        with pytest.raises(JournalError, match="another process"):
            Journal(journal.folder)

    def test_a_folder_that_cannot_be(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(JournalError, match="cannot be written"):
            Journal(tmp_path / "file")


class TestSnapshot:
    def test_it_takes_the_place_of_what_is_before_it(self, journal):
        journal.append(CHANGES[:1])
        generation = journal.rotate()
        journal.append(CHANGES[1:])
        journal.keep_snapshot(generation, lambda folder: (folder / "state").write_text("one"))
        assert reopened(journal) == CHANGES[1:]
        assert (journal.snapshot / "state").read_text() == "one"
        assert len(list(journal.folder.glob("*.journal"))) == 1

    def test_one_that_fails_leaves_the_journals(self, journal):
        def fails(folder):
            (folder / "half").touch()
            raise OSError("no space left")

        journal.append(CHANGES[:1])
        generation = journal.rotate()
        journal.append(CHANGES[1:])
        with pytest.raises(JournalError, match="no space left"):
            journal.keep_snapshot(generation, fails)
        assert reopened(journal) == CHANGES
        assert journal.snapshot is None
        assert not list(journal.folder.glob("*.new"))

    def test_half_a_snapshot_is_none(self, journal):
        journal.append(CHANGES)
        draft = journal.folder / "00000002.new"
        draft.mkdir()
        assert reopened(journal) == CHANGES
        assert journal.snapshot is None
        assert not draft.exists()


class TestFullDisk:
    def test_nothing_is_kept_of_what_does_not_fit(self, journal, small_files):
        journal.append(CHANGES)
        before = next(journal.folder.glob("*.journal")).read_bytes()
        with small_files(len(before) + 30), pytest.raises(JournalError, match="make room"):
            journal.append([{"put": [{"id": "large", "title": "x" * 400}]}])
        assert next(journal.folder.glob("*.journal")).read_bytes() == before
        journal.append(CHANGES[:1])
        assert reopened(journal) == [*CHANGES, CHANGES[0]]

    def test_a_disk_that_cannot_even_undo_gets_no_more(self, journal, monkeypatch):
        def fails(file):
            raise OSError("input/output error")

        journal.append(CHANGES[:1])
        monkeypatch.setattr(journals.os, "fsync", fails)
        for _ in range(2):
            with pytest.raises(JournalError, match="input/output error"):
                journal.append(CHANGES[1:])
        monkeypatch.undo()
        with pytest.raises(JournalError, match="no more changes"):
            journal.append(CHANGES[1:])

    @pytest.fixture
    def small_files(self):
        from contextlib import contextmanager

        @contextmanager
        def limit(size):
            """Let no file of this process grow beyond a size: the system writes what fits, then fails."""
            former = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, former)

        return limit


def test_killed_at_any_moment_it_loses_nothing_acknowledged(tmp_path):
    chance, acknowledged = random.Random(0), -1
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, journal_writer.__file__, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": "."},
        ) as writer:
            assert writer.stdout.readline() == b"open\n"
            time.sleep(chance.random() * 0.03)
            writer.send_signal(signal.SIGKILL)
            told = writer.stdout.read().splitlines(keepends=True)
        acknowledged = max([acknowledged, *(int(line) for line in told if line.endswith(b"\n"))])
        journal = Journal(tmp_path)
        numbers = journal_writer.read(journal)
        journal.close()
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > acknowledged
    assert acknowledged > 10
