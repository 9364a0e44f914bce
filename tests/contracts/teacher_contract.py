"""What every place of a teacher must keep. Inherit and say how a teacher is brought there, and how it is killed."""

import threading
from typing import Any

import pytest

from m6rec.distillation.executors.base import Executor
from m6rec.distillation.teacher import read_answer
from m6rec.errors import DistillationError
from tests.distillation.toy_teacher import CARD, open_nobody, open_toy, request


class TeacherContract:
    """The promises of the protocol."""

    def make(self, open_teacher: Any = open_toy) -> Executor:
        """Return an executor that is not open yet."""
        raise NotImplementedError

    def kill(self, executor: Any) -> None:
        """End the teacher as a crash would."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def opened(self) -> Any:
        """Return an open executor: bringing one up is what takes long."""
        executor = self.make()
        assert executor.open() == CARD
        yield executor
        executor.close()
        executor.close()  # twice is no mistake

    def test_it_keeps_the_protocol(self) -> None:
        assert isinstance(self.make(), Executor)

    def test_it_answers_what_the_teacher_answers(self, opened: Executor) -> None:
        for number in (1.0, -2.5, 1e30):
            labels, version = read_answer(opened.label(request(number)))
            assert labels["scores"].tolist() == pytest.approx([2 * number])
            assert version == CARD.version

    def test_a_reason_comes_back_and_the_teacher_stays(self, opened: Executor) -> None:
        with pytest.raises(DistillationError, match="out of memory"):
            read_answer(opened.label(request(fail="out of memory")))
        assert read_answer(opened.label(request(3.0)))[0]["scores"].tolist() == [6.0]

    def test_megabytes_pass(self, opened: Executor) -> None:
        import torch

        from m6rec.distillation.wire import pack

        many = torch.arange(500_000, dtype=torch.float32)
        assert read_answer(opened.label(pack({"x": many}, {})))[0]["scores"].equal(many * 2)

    def test_who_cannot_be_opened_says_so(self) -> None:
        executor = self.make(open_nobody)
        with pytest.raises((DistillationError, ConnectionError)):
            executor.open()
        executor.close()

    def test_a_death_at_work_is_told_and_so_is_the_next_call(self) -> None:
        executor = self.make()
        executor.open()
        threading.Timer(0.3, self.kill, [executor]).start()
        with pytest.raises(ConnectionError):
            executor.label(request(seconds=60))
        with pytest.raises(ConnectionError):
            executor.label(request())
        executor.close()

    def test_closing_wakes_who_waits(self) -> None:
        executor = self.make()
        executor.open()
        threading.Timer(0.3, executor.close).start()
        with pytest.raises(ConnectionError):
            executor.label(request(seconds=60))
