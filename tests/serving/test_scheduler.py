import math

import pytest

from m6rec.errors import ConfigError, DataError, DeadlineError, OverloadedError, StageError
from m6rec.serving.graph import Graph
from m6rec.serving.shedding import Ladder, Rung
from m6rec.serving.stage import Stage, StagePlan
from tests.serving.steps import Course, adding, line, parse, respond


def linear(base, each):
    return lambda size: base + each * size


def test_an_answer_says_what_made_it():
    course = Course(line(), work=linear(0.01, 0))
    course.ask(1)
    course.until(1.0)
    answer = course.answers[1]
    assert answer["items"] == [1, "a"]
    assert (answer["rung"], answer["version"]) == ("full", "0")
    figures = {"wait_ms": 0.0, "ms": pytest.approx(10), "size": 1.0, "batch": 1, "batch_size": 1.0}
    assert answer["trace"]["work"] == figures
    assert course.scheduler.is_idle


def diamond(**plans):
    stages = (
        Stage("parse", parse, kind="inline", at_door=True),
        Stage("left", adding("a"), ("parse",), plan=StagePlan(**plans)),
        Stage("right", adding("b"), ("parse",), plan=StagePlan(**plans)),
        Stage("join", adding("c"), ("left", "right"), plan=StagePlan(max_batch=4)),
        Stage("respond", respond, ("join",), kind="inline"),
    )
    return Graph(stages)


def test_branches_run_at_the_same_time_and_join_by_request():
    course = Course(diamond(max_batch=1), left=linear(0.01, 0), right=linear(0.05, 0))
    course.ask(1)
    course.ask(2)
    course.until(1.0)
    assert [answer["items"] for answer in course.answers.values()] == [[1, "a", "b", "c"], [2, "a", "b", "c"]]
    joins = [(numbers, time) for name, numbers, time in course.batches if name == "join"]
    assert joins == [([1], pytest.approx(0.05)), ([2], pytest.approx(0.1))]


def test_a_join_whose_other_branch_is_late_ends_at_the_deadline():
    course = Course(diamond(max_batch=1), left=linear(0.01, 0), right=linear(5, 0))
    course.ask(1, deadline=0.2)
    course.until(0.3)
    assert isinstance(course.answers[1], DeadlineError)
    assert course.at[1] == pytest.approx(0.2)
    course.until(10)
    assert not [batch for batch in course.batches if batch[0] == "join"]
    assert course.scheduler.is_idle


def test_a_full_queue_refuses_at_the_door_and_nothing_that_was_taken_is_lost():
    course = Course(line(queue_cap=3, max_batch=1), work=linear(0.1, 0))
    for number in range(6):
        course.ask(number, deadline=10)
    course.until(5)
    refused = [number for number, answer in course.answers.items() if isinstance(answer, OverloadedError)]
    assert refused == [4, 5]  # one runs, three wait
    assert [course.answers[number]["items"][0] for number in range(4)] == [0, 1, 2, 3]
    assert course.scheduler.tally.outcomes["refused"] == 2


def test_what_cannot_be_in_time_is_refused_and_told_when_to_come_again():
    course = Course(line(max_batch=1), work=linear(0.1, 0))
    course.ask(0)
    course.until(0.5)  # the cost is known now
    for number in range(1, 9):
        course.ask(number, deadline=0.35)
    course.until(5)
    refused = [number for number, answer in course.answers.items() if isinstance(answer, OverloadedError)]
    assert refused == [4, 5, 6, 7, 8]
    assert course.answers[8].retry_after_s == pytest.approx(0.4)
    assert all(course.at[number] - 0.5 <= 0.35 for number in (1, 2, 3))


def test_what_is_still_before_an_earlier_stage_counts_for_the_later_one():
    stages = (
        Stage("fast", adding("a"), plan=StagePlan(max_batch=1)),
        Stage("slow", adding("b"), ("fast",), plan=StagePlan(max_batch=1)),
        Stage("respond", respond, ("slow",), kind="inline"),
    )
    course = Course(Graph(stages), fast=linear(0.001, 0), slow=linear(0.1, 0))
    course.ask(0)
    course.until(1)
    for number in range(1, 21):  # all at once: none of them is before the slow stage yet
        course.ask(number, deadline=0.5)
    course.until(3)
    answered = [number for number, answer in course.answers.items() if isinstance(answer, dict)]
    assert answered == [0, 1, 2, 3, 4]
    assert course.scheduler.tally.outcomes["expired"] == 0


def test_a_cost_that_was_once_too_high_does_not_shut_the_door_for_ever():
    course = Course(line(max_batch=1), work=lambda size: course.costs_next.pop(0))
    course.costs_next = [20.0, *[0.1] * 50]
    course.ask(0, deadline=30)
    course.until(21)
    for number in range(1, 4):
        course.ask(number, deadline=0.5)
    course.until(22)
    assert course.answers[1]["items"][0] == 1  # nothing else was there
    assert isinstance(course.answers[2], OverloadedError)
    for number in range(4, 7):
        course.ask(number, deadline=0.5)
    course.until(23)
    assert [course.answers[number]["items"][0] for number in range(4, 7)] == [4, 5, 6]


def test_inside_a_slow_stage_holds_back_the_one_before_and_loses_nothing():
    stages = (
        Stage("fast", adding("a"), plan=StagePlan(max_batch=2, queue_cap=50)),
        Stage("slow", adding("b"), ("fast",), plan=StagePlan(max_batch=1, queue_cap=2)),
        Stage("respond", respond, ("slow",), kind="inline"),
    )
    course = Course(Graph(stages), fast=linear(0.001, 0), slow=linear(0.1, 0))
    for number in range(20):
        course.ask(number, deadline=100)
    course.until(0.05)
    lane = course.scheduler.lanes["slow"]
    assert (len(lane.queue), lane.is_overfull) == (2, True)
    assert len([batch for batch in course.batches if batch[0] == "fast"]) == 3
    course.until(10)
    assert sorted(course.answers) == list(range(20))
    assert all(answer["items"][0] == number for number, answer in course.answers.items())


def test_identical_requests_in_flight_are_computed_once():
    course = Course(line(max_batch=1), work=linear(0.1, 0))
    for number in range(4):
        course.ask(number, key="same")
    course.ask(4, key="other")
    course.until(1)
    assert [numbers for _, numbers, _ in course.batches] == [[0], [4]]
    assert [course.answers[number]["items"][0] for number in range(5)] == [0, 0, 0, 0, 4]
    assert course.scheduler.tally.outcomes["shared"] == 3
    course.ask(5, key="same")
    course.until(2)
    assert course.answers[5]["items"][0] == 5  # none is in flight any more


def test_who_waits_for_anothers_computation_keeps_its_own_deadline():
    course = Course(line(max_batch=1), work=linear(0.3, 0))
    first = course.ask(0, deadline=0.1, key="same")
    course.ask(1, deadline=1.0, key="same")
    course.until(0.2)
    assert isinstance(course.answers[0], DeadlineError)
    course.until(1)
    assert course.answers[1]["items"][0] == 0
    assert not first.is_open


def test_the_first_of_several_may_go_and_the_others_are_still_answered():
    course = Course(line(max_batch=1), work=linear(0.1, 0))
    course.ask(9)
    first = course.ask(0, key="same")
    course.ask(1, key="same")
    course.scheduler.cancel(first)
    course.until(1)
    assert 0 not in course.answers
    assert course.answers[1]["items"][0] == 0


def test_what_nobody_waits_for_is_dropped_when_it_is_taken_out():
    course = Course(line(max_batch=1), work=linear(0.1, 0))
    course.ask(0)
    gone = course.ask(1)
    course.ask(2)
    course.scheduler.cancel(gone)
    course.until(1)
    assert [numbers for _, numbers, _ in course.batches] == [[0], [2]]
    assert course.scheduler.tally.stages["work"].dropped == 1
    assert course.scheduler.tally.outcomes["cancelled"] == 1


def test_what_nobody_waits_for_takes_no_ones_place():
    course = Course(line(max_batch=1, queue_cap=2), work=linear(0.1, 0))
    course.ask(0)
    gone = [course.ask(number) for number in (1, 2)]
    for ticket in gone:
        course.scheduler.cancel(ticket)
    course.ask(3)
    course.until(1)
    assert [course.answers[number]["items"][0] for number in (0, 3)] == [0, 3]


def test_what_is_too_late_is_dropped_when_it_is_taken_out():
    course = Course(line(max_batch=1), work=linear(0.3, 0))
    course.ask(0)
    course.ask(1, deadline=0.2)
    course.until(1)
    assert isinstance(course.answers[1], DeadlineError)
    assert [numbers for _, numbers, _ in course.batches] == [[0]]


def failing_on(bad):
    def run(payloads):
        if any(payload["request"]["n"] == bad for payload in payloads):
            raise ValueError("a secret of the stage")
        return [{"a": 1} for _ in payloads]

    return run


def test_a_stage_that_raises_fails_the_culprit_alone(caplog):
    stages = (Stage("work", failing_on(2)), Stage("respond", respond, ("work",), kind="inline"))
    course = Course(Graph(stages), work=linear(0.01, 0))
    for number in range(5):
        course.ask(number)
    course.until(1)
    assert isinstance(course.answers[2], StageError)
    assert "ValueError" in str(course.answers[2])
    assert "secret" not in str(course.answers[2])
    assert [course.answers[number]["items"][0] for number in (0, 1, 3, 4)] == [0, 1, 3, 4]
    assert [numbers for _, numbers, _ in course.batches] == [[0], [1, 2, 3, 4], [1], [2], [3], [4]]
    assert "a secret of the stage" in caplog.text


def test_an_outcome_that_is_an_exception_fails_that_request_alone_and_ours_are_told_as_they_are():
    def run(payloads):
        return [DataError("got 2") if payload["request"]["n"] == 2 else {"a": 1} for payload in payloads]

    stages = (Stage("work", run), Stage("respond", respond, ("work",), kind="inline"))
    course = Course(Graph(stages), work=linear(0.01, 0))
    for number in range(4):
        course.ask(number)
    course.until(1)
    assert str(course.answers[2]) == "got 2"
    assert course.scheduler.tally.outcomes == {
        **dict.fromkeys(course.scheduler.tally.outcomes, 0),
        "answered": 3,
        "bad": 1,
    }


def test_a_stage_that_gives_too_few_answers_fails_all_of_its_batch():
    stages = (Stage("work", lambda payloads: []), Stage("respond", respond, ("work",), kind="inline"))
    course = Course(Graph(stages))
    course.ask(1)
    course.until(1)
    assert "gave 0 answers for 1 requests" in str(course.answers[1])


def test_an_inline_stage_that_raises_fails_its_request_alone():
    stages = (Stage("work", failing_on(1), kind="inline"), Stage("respond", respond, ("work",), kind="inline"))
    course = Course(Graph(stages))
    course.ask(0)
    course.ask(1)
    assert course.answers[0]["items"] == [0, "a"]
    assert isinstance(course.answers[1], StageError)


def test_a_graph_that_ends_without_an_answer_says_so():
    course = Course(Graph((Stage("work", adding("a")),)))
    course.ask(0)
    course.until(1)
    assert "ended without an answer" in str(course.answers[0])


def test_a_stage_that_hangs_is_given_up_and_its_worker_replaced():
    course = Course(
        line(max_batch=1, limit_ms=500, spares=1), work=lambda size: math.inf if course.hang.pop(0) else 0.01
    )
    course.hang = [True, False, True, False]
    course.ask(0, deadline=0.2)
    course.ask(1, deadline=2)
    course.until(1)
    assert isinstance(course.answers[0], DeadlineError)
    assert course.answers[1]["items"][0] == 1
    assert course.at[1] == pytest.approx(0.51)
    course.ask(2, deadline=5)
    course.until(2)
    assert "hangs" in str(course.answers[2])
    course.ask(3, deadline=5)
    assert "hangs" in str(course.answers[3])
    assert isinstance(course.answers[3], OverloadedError)
    assert not course.scheduler.report()["ready"]


def test_a_hung_batch_that_comes_back_changes_nothing_but_frees_its_worker():
    course = Course(line(max_batch=1, limit_ms=500, spares=0), work=linear(0.8, 0))
    course.ask(0, deadline=5)
    course.until(0.6)
    assert isinstance(course.answers[0], StageError)
    assert not course.scheduler.report()["ready"]
    course.until(1)
    assert course.scheduler.report()["ready"]
    assert isinstance(course.answers[0], StageError)


def test_what_is_answered_at_the_door_is_never_refused():
    def door(payloads):
        return [{"answer": {"items": ["cached"]}} if p["request"]["n"] % 2 else {} for p in payloads]

    stages = (
        Stage("door", door, kind="inline", at_door=True),
        Stage("work", adding("a"), ("door",), plan=StagePlan(max_batch=1, queue_cap=1)),
        Stage("respond", respond, ("work",), kind="inline"),
    )
    course = Course(Graph(stages), work=linear(1, 0))
    for number in range(8):
        course.ask(number, deadline=9)
    assert [course.answers[number]["items"] for number in (1, 3, 5, 7)] == [["cached"]] * 4
    assert all(isinstance(course.answers[number], OverloadedError) for number in (4, 6))


def laddered(spared=(), kinds=("recommend",), **plan):
    rungs = (
        Rung("full", candidates=100),
        Rung("fewer", candidates=20, kinds=spared),
        Rung("popular", model=False, kinds=spared),
    )
    stages = (
        Stage("parse", parse, kind="inline", at_door=True),
        Stage(
            "popular",
            lambda payloads: [{"answer": {"items": ["popular"]}} for _ in payloads],
            ("parse",),
            kind="inline",
            wants=lambda payload: not payload["rung"].model,
        ),
        Stage(
            "work",
            adding("a"),
            ("popular",),
            wants=lambda payload: payload["rung"].model,
            size=lambda payload: payload["rung"].candidates or 0.0,
            plan=StagePlan(**plan),
        ),
        Stage("respond", respond, ("work",), kind="inline"),
    )
    return Graph(stages, kinds=frozenset(kinds), ladder=Ladder(rungs))


def test_a_request_that_cannot_be_in_time_as_a_whole_goes_down_the_ladder_before_it_is_refused():
    course = Course(laddered(max_batch=1), work=linear(0, 0.001))
    course.ask(0)
    course.until(0.5)  # 100 candidates take 0.1 s
    for number in range(1, 8):
        course.ask(number, deadline=0.28)
    course.until(2)
    assert [course.answers[number]["rung"] for number in range(1, 8)] == [
        "full",
        "full",
        "fewer",
        "fewer",
        *["popular"] * 3,
    ]
    assert all(course.at[number] <= 0.78 for number in range(1, 8))
    assert course.scheduler.tally.outcomes["refused"] == 0


def test_a_kind_that_cannot_be_given_less_is_served_whole_or_refused():
    course = Course(laddered(("recommend",), ("recommend", "rank"), max_batch=1), work=linear(0, 0.001))
    course.ask(0)
    course.until(0.5)  # 100 candidates take 0.1 s
    course.scheduler.controller.level = 0.3  # at "fewer"
    for number in range(1, 5):
        course.ask(number, deadline=0.28, kind="rank")
    course.ask(5, deadline=0.28)
    course.until(2)
    assert [course.answers[number]["rung"] for number in (1, 2, 5)] == ["full", "full", "fewer"]
    assert all(isinstance(course.answers[number], OverloadedError) for number in (3, 4))


def test_feedback_of_the_stages_brings_new_requests_down_the_ladder_and_back_up():
    course = Course(laddered(max_batch=1, queue_cap=1000), work=linear(0, 0.001))
    levels = []
    for step in range(200):  # twice what whole service can do
        course.ask(step, deadline=1.0)
        course.until(0.05 * (step + 1))
        levels.append(course.scheduler.controller.level)
    rungs = [course.answers[step]["rung"] for step in range(200) if step in course.answers]
    assert min(levels) < 0.5
    assert "fewer" in rungs
    assert rungs.count("popular") < 20
    for step in range(200, 240):
        course.ask(step, deadline=1.0)
        course.until(10 + 0.5 * (step - 199))
    assert course.scheduler.controller.level == 1.0
    assert course.answers[239]["rung"] == "full"


def test_stages_that_are_not_wanted_pass_by():
    stages = (
        Stage("a", adding("a"), wants=lambda payload: payload["kind"] == "recommend"),
        Stage("b", adding("b"), ("a",)),
        Stage("respond", respond, ("b",), kind="inline"),
    )
    course = Course(Graph(stages, kinds=frozenset({"recommend", "rank"})))
    course.ask(0, kind="rank")
    course.ask(1)
    course.until(1)
    assert course.answers[0]["items"] == [0, "b"]
    assert course.answers[1]["items"] == [1, "a", "b"]


def test_an_unknown_kind_says_which_there_are():
    with pytest.raises(ConfigError, match="did you mean recommend"):
        Course(line()).ask(0, kind="recomend")


@pytest.mark.parametrize("cost", [linear(0.008, 0.002), linear(0.001, 0.009)])
def test_under_three_times_the_load_what_is_taken_is_in_time(cost):
    """Compute bound or weight bound: a fixed largest batch would be late with all of them (the spec's table)."""
    course = Course(line(max_batch=16, queue_cap=64), work=cost)
    for step in range(900):  # 300 a second
        course.until(step / 300)
        course.ask(step, deadline=0.1)
    course.until(10)
    in_time = sum(isinstance(answer, dict) for answer in course.answers.values())
    late = sum(isinstance(answer, DeadlineError) for answer in course.answers.values())
    best = 16 / cost(16) if cost(16) < 0.1 else 1 / cost(1)
    assert in_time / 3 > 0.85 * min(300, best)
    assert late < 0.03 * 900


def test_everybody_is_told_when_the_server_gives_up():
    course = Course(line(max_batch=1), work=linear(10, 0))
    course.ask(0, deadline=20)
    course.ask(1, deadline=20)
    course.scheduler.give_up(OverloadedError("going", 1.0))
    assert all(isinstance(answer, OverloadedError) for answer in course.answers.values())
    assert len(course.answers) == 2


def test_the_report_has_every_figure():
    course = Course(line(max_batch=2), work=linear(0.01, 0.01))
    course.ask(9)
    course.until(0.5)
    for number in range(5):
        course.ask(number)
    course.until(1)
    report = course.scheduler.report()
    assert report["requests"]["answered"] == 6
    assert report["rungs"] == {"full": 6}
    work = report["stages"]["work"]
    assert work["batches"] == {1: 2, 2: 2}
    assert work["cost_ms"] == {"base": pytest.approx(10), "each": pytest.approx(10)}
    assert (work["done"], work["queued"], work["running"]) == (6, 0, 0)
    assert report["stages"]["parse"]["done"] == report["stages"]["respond"]["done"] == 6
    assert 0 < work["wait_ms"]["p50"] <= work["wait_ms"]["p99"]
