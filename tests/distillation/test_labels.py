"""The window of labels under seeded deaths, delays and second answers, on a clock that nobody waits for."""

import heapq
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.distillation.config import StreamConfig
from m6rec.distillation.labels import LabelStream
from m6rec.distillation.pool import Answered, Failed, Gone, Joined, Took
from m6rec.distillation.teacher import TeacherCard
from m6rec.distillation.wire import pack
from m6rec.errors import ConfigError, DistillationError

CARD = TeacherCard("v1", "ranking", "words", "yes or no")
TASKS = [100, 101, 102, 103, 104, 105, 106, 107, 108, 109]


class Teachers:
    """A pool in virtual time: events lie in a heap, and waiting moves the clock to the next of them.

    Args:
        script: teacher -> what becomes of each task that it takes: seconds that it needs, or "dies", "fails", "hangs",
            "twice" (answers a second time later), "nan", "other" (another version). Beyond the script, one second each.
        joins: teacher -> when it comes up.
    """

    def __init__(self, script, joins=None, card=CARD):
        self.now, self.script = 0.0, {name: iter(steps) for name, steps in script.items()}
        self._cards = card if isinstance(card, dict) else dict.fromkeys(script, card)
        self._heap, self._order, self._queue = [], itertools.count(), []
        self._free, self._up, self.asked = set(), set(), []
        for name in script:
            self._later((joins or {}).get(name, 0.0), "join", name)

    def clock(self):
        return self.now

    def submit(self, task, request):
        heapq.heappush(self._queue, (task, request))
        self._assign()

    def clear(self):
        self._queue.clear()

    def alive(self):
        return sorted(self._up)

    def remove(self, name):
        self._up.discard(name)
        self._free.discard(name)

    def results(self, timeout):
        found, end = [], self.now + timeout
        while self._heap and self._heap[0][0] <= end:
            at, _, kind, payload = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            end = self.now  # whatever else happens at the same moment
            found += self._happen(kind, payload)
        self.now = max(self.now, end)
        return found

    def _happen(self, kind, payload):
        if kind == "join":
            self._up.add(payload)
            self._free.add(payload)
            self._assign()
            return [Joined(payload, self.now, self._cards[payload])]
        if kind == "event":
            if isinstance(payload, Gone):
                self._up.discard(payload.teacher)
            elif not isinstance(payload, Took) and payload.teacher in self._up:
                self._free.add(payload.teacher)
                self._assign()
            return [payload]
        raise AssertionError(kind)

    def _later(self, at, kind, payload):
        heapq.heappush(self._heap, (at, next(self._order), kind, payload))

    def _assign(self):
        while self._queue and self._free:
            name = min(self._free)
            self._free.discard(name)
            task, _ = heapq.heappop(self._queue)
            self.asked.append((name, task))
            self._later(self.now, "event", Took(name, self.now, task))
            self._work(name, task, next(self.script[name], 1.0))

    def _work(self, name, task, step):
        done = self.now + (step if isinstance(step, float) else 1.0)
        version = "v2" if step == "other" else "v1"
        value = float("nan") if step == "nan" else float(task)
        answer = Answered(name, done, task, pack({"scores": torch.full((1, 2), value)}, {"version": version}))
        if step == "dies":
            self._later(done, "event", Gone(name, done, "it died"))
        elif step == "fails":
            self._later(done, "event", Failed(name, done, task, "out of memory"))
        elif step != "hangs":
            self._later(done, "event", answer)
            if step == "twice":
                self._later(done + 0.5, "event", Answered(name, done + 0.5, task, answer.answer))


def check(task, labels):
    if torch.isnan(labels["scores"]).any():
        raise DistillationError("got labels 'scores' that are not finite")


def stream_over(teachers, **settings):
    stream = LabelStream(teachers, StreamConfig(**settings), CARD, teachers.clock)
    stream.start(TASKS, lambda task: str(task).encode(), check)
    return stream


def delivered(stream):
    """Take everything, and hold each label against its task."""
    found = []
    for _ in TASKS:
        task, labels = stream.take()
        assert labels["scores"].unique().tolist() == [task]
        found.append(task)
    return found


def test_labels_come_in_order_whoever_is_faster():
    teachers = Teachers({"slow": [5.0] * 9, "quick": [0.5] * 9})
    stream = stream_over(teachers)
    assert delivered(stream) == TASKS
    counts = {name: sum(who == name for who, _ in teachers.asked) for name in ("slow", "quick")}
    assert counts["quick"] > counts["slow"] > 0
    assert stream.figures.requeued == stream.figures.duplicates == 0


def test_free_order_does_not_wait_for_the_slow_one():
    found = delivered(stream_over(Teachers({"slow": [50.0], "quick": [1.0] * 20}), ordered=False))
    assert sorted(found) == TASKS
    assert found[-1] == TASKS[0]  # the slow one comes up first and takes it


@pytest.mark.parametrize(("window", "most"), [(None, 4), (1, 1), (3, 3)])
def test_no_more_than_the_window_is_asked_for(window, most):
    teachers = Teachers({"only": []})
    stream = stream_over(teachers, window=window)
    asked = []
    stream.start(TASKS, lambda task: asked.append(task) or b"", check)
    assert len(asked) == most
    stream.take()
    assert len(asked) == most + 1


def test_a_dead_teachers_batch_goes_to_another():
    teachers = Teachers({"a": [1.0, "dies"], "b": [1.0] * 20})
    stream = stream_over(teachers)
    assert delivered(stream) == TASKS
    assert stream.figures.requeued == 1
    assert len(stream.figures.recoveries) == 1
    assert 0 < stream.figures.recoveries[0] < 3


def test_a_lease_runs_out_and_a_late_answer_is_dropped():
    # "a" holds its first batch for 12 s; "b" is asked for it after 10, begins at 13 and answers in vain.
    stream = stream_over(Teachers({"a": [12.0] + [6.0] * 9, "b": [1.0] + [6.0] * 9}), lease_seconds=10.0)
    assert delivered(stream) == TASKS
    assert (stream.figures.requeued, stream.figures.duplicates) == (1, 1)


def test_a_second_answer_is_dropped():
    stream = stream_over(Teachers({"a": ["twice"] * 20}))
    assert delivered(stream) == TASKS
    assert stream.figures.duplicates > 5


def test_nobody_for_a_while_is_waited_for_then_told():
    late = stream_over(Teachers({"a": []}, joins={"a": 50.0}), patience_seconds=60.0)
    assert delivered(late) == TASKS
    assert late.figures.waited_seconds > 50
    never = stream_over(Teachers({"a": ["dies"]}), patience_seconds=60.0)
    with pytest.raises(DistillationError, match=r"no teacher for 6\d s .teacher a: it died.; .* --resume"):
        never.take()
    hung = stream_over(Teachers({"a": ["hangs"]}), patience_seconds=60.0, lease_seconds=10.0)
    with pytest.raises(DistillationError, match="no teacher for"):
        hung.take()


def test_a_batch_that_nobody_can_do_is_told():
    stream = stream_over(Teachers({"a": ["fails"] * 9, "b": ["fails"] * 9}))
    with pytest.raises(DistillationError, match="tried 3 times and never labelled; last: out of memory"):
        stream.take()


@pytest.mark.parametrize(
    ("fault", "said"), [("nan", "not finite"), ("other", "version v2, and labels so far are of v1")]
)
def test_a_teacher_that_cannot_be_believed_goes(fault, said):
    stream = stream_over(Teachers({"a": [1.0, fault], "b": [1.0] * 30}))
    assert delivered(stream) == TASKS
    assert stream.pool.alive() == ["b"]
    alone = stream_over(Teachers({"a": [1.0, fault]}))
    with pytest.raises(DistillationError, match=f"teacher a: .*{said}"):
        delivered(alone)


def test_versions_mix_where_that_was_asked_for():
    stream = stream_over(Teachers({"a": ["other"] * 20}), mix_versions=True)
    assert delivered(stream) == TASKS


@pytest.mark.parametrize("name", ["task", "tokenizer", "space"])
def test_a_teacher_of_another_kind_is_refused(name):
    other = TeacherCard(**{**vars(CARD), name: "other"})
    stream = stream_over(Teachers({"a": []}, card=other))
    with pytest.raises(DistillationError, match=f"teacher a: it has another {name} .got 'other', expected"):
        stream.take()


def test_what_a_refused_teacher_had_begun_is_not_taken_from_it():
    """It takes a batch as soon as it is up, and may answer before anybody has read its card."""
    other = TeacherCard("v1", "ranking", "other words", "yes or no")
    stream = stream_over(Teachers({"a": [0.0], "b": []}, card={"a": other, "b": CARD}), mix_versions=True)
    assert delivered(stream) == TASKS
    assert stream.figures.requeued == sum(name == "a" for name, _ in stream.pool.asked) > 0


def test_everything_is_delivered_once_and_no_more():
    stream = stream_over(Teachers({"a": []}))
    delivered(stream)
    with pytest.raises(DistillationError, match="has been delivered"):
        stream.take()


def test_starting_again_goes_on_where_one_says():
    teachers = Teachers({"a": []})
    stream = stream_over(teachers)
    assert [stream.take()[0] for _ in range(3)] == TASKS[:3]
    stream.start(TASKS[5:], lambda task: b"", check)
    assert [stream.take()[0] for _ in range(5)] == TASKS[5:]


def test_the_line_tells_how_it_goes():
    stream = stream_over(Teachers({"a": [2.0] * 20, "b": [2.0] * 20}))
    delivered(stream)
    line = stream.line().plain
    assert "teachers 2" in line
    assert "requeued 0" in line
    assert "labelled batches/s 1.0" in line
    assert "student waits 100%" in line  # this one does nothing else


STEPS = st.one_of(
    st.floats(0.1, 20.0), st.sampled_from(["dies", "twice", "hangs", "fails"]), st.floats(0.1, 2.0), st.just(1.0)
)


@settings(max_examples=150, deadline=None)
@given(
    scripts=st.lists(st.lists(STEPS, max_size=8), min_size=1, max_size=4),
    joins=st.lists(st.floats(0.0, 30.0), min_size=4, max_size=4),
    ordered=st.booleans(),
    window=st.sampled_from([None, 1, 5]),
)
def test_whatever_happens_every_label_is_delivered_exactly_once(scripts, joins, ordered, window):
    """One teacher never fails; all others die, hang, stammer and come late as they like."""
    teachers = Teachers(
        {"rock": [], **{f"t{n}": script for n, script in enumerate(scripts)}},
        joins={f"t{n}": at for n, at in enumerate(joins)},
    )
    stream = stream_over(teachers, ordered=ordered, window=window, lease_seconds=15.0, max_attempts=99)
    found = delivered(stream)
    assert sorted(found) == TASKS
    assert not ordered or found == TASKS
    assert len(teachers.asked) <= len(TASKS) + stream.figures.requeued


def test_impossible_settings_are_told_at_once():
    with pytest.raises(ConfigError, match=r"(?s)lease_seconds.*window.*max_attempts"):
        StreamConfig(lease_seconds=0, window=0, max_attempts=0)
