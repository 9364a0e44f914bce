import asyncio
import threading
import time

import pytest

from m6rec.errors import ConfigError, DeadlineError, OverloadedError, StageError
from m6rec.serving.executors.local import LocalConfig, LocalExecutor
from m6rec.serving.graph import Graph
from m6rec.serving.stage import Stage, StagePlan
from tests.serving.steps import adding, line, parse, respond


def graph_of(run, **settings):
    return Graph((Stage("work", run, **settings), Stage("respond", respond, ("work",), kind="inline")))


async def served(graph, body, **settings):
    executor = LocalExecutor(graph, LocalConfig(**settings))
    await executor.start()
    try:
        return await body(executor)
    finally:
        await executor.drain(1.0)


def ask(graph, body, **settings):
    return asyncio.run(asyncio.wait_for(served(graph, body, **settings), 30))


async def gathered(executor, numbers, **settings):
    asking = (executor.submit({"n": number}, **settings) for number in numbers)
    return await asyncio.gather(*asking, return_exceptions=True)


def test_many_requests_at_once_each_get_their_own_answer():
    answers = ask(line(workers=3, max_batch=7, queue_cap=500), lambda executor: gathered(executor, range(300)))
    assert [answer["items"] for answer in answers] == [[number, "a"] for number in range(300)]
    assert max(answer["trace"]["work"]["batch"] for answer in answers) <= 7


def test_batches_give_what_single_requests_give():
    def double(payloads):
        return [{"answer": {"items": [2 * payload["request"]["n"]], "of": len(payloads)}} for payload in payloads]

    graph = Graph((Stage("double", double, plan=StagePlan(max_batch=16)),))
    single = ask(graph.planned({"double": StagePlan(max_batch=1)}), lambda executor: gathered(executor, range(50)))
    batched = ask(graph, lambda executor: gathered(executor, range(50)))
    assert [answer["items"] for answer in batched] == [answer["items"] for answer in single]
    assert max(answer["of"] for answer in batched) > 1


def test_a_stage_in_processes_answers_and_survives_the_death_of_one(tmp_path):
    async def body(executor):
        return await gathered(executor, range(6), deadline_ms=25_000)

    graph = graph_of(Deadly(str(tmp_path / "died")), kind="process", plan=StagePlan(max_batch=2, spares=0))
    answers = ask(graph, body)
    assert [answer["items"] for answer in answers] == [[number, "a"] for number in range(6)]
    assert (tmp_path / "died").exists()


class Deadly:
    """Kills its process at the first batch with request 3 in it."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, payloads):
        import os
        from pathlib import Path

        if any(payload["request"]["n"] == 3 for payload in payloads) and not Path(self.mark).exists():
            Path(self.mark).touch()
            os._exit(9)
        return [{"a": 1} for _ in payloads]


def test_a_hanging_stage_costs_its_own_request_alone():
    stop = threading.Event()

    def run(payloads):
        if payloads[0]["request"]["n"] == 0:
            stop.wait(20)
        return [{"a": 1} for _ in payloads]

    async def body(executor):
        answers = await gathered(executor, range(5), deadline_ms=5000)
        stop.set()
        return answers

    answers = ask(graph_of(run, plan=StagePlan(max_batch=1, limit_ms=100)), body)
    assert isinstance(answers[0], StageError)
    assert [answer["items"] for answer in answers[1:]] == [[number, "a"] for number in range(1, 5)]


def test_a_request_ends_at_its_deadline_though_its_stage_goes_on():
    stop = threading.Event()

    def run(payloads):
        stop.wait(20)
        return [{"a": 1} for _ in payloads]

    async def body(executor):
        with pytest.raises(DeadlineError, match="within 50 ms"):
            await executor.submit({"n": 0}, deadline_ms=50)
        stop.set()

    ask(graph_of(run), body)


def test_a_cancelled_request_is_not_computed_and_the_others_are():
    started, go, seen = threading.Event(), threading.Event(), []

    def run(payloads):
        seen.extend(payload["request"]["n"] for payload in payloads)
        started.set()
        go.wait(20)
        return [{"a": 1} for _ in payloads]

    async def body(executor):
        asking = [asyncio.create_task(executor.submit({"n": number}, deadline_ms=9000)) for number in range(4)]
        await asyncio.to_thread(started.wait, 10)
        asking[2].cancel()
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*asking, return_exceptions=True)

    answers = ask(graph_of(run, plan=StagePlan(max_batch=1)), body)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert [answers[number]["items"][0] for number in (0, 1, 3)] == [0, 1, 3]
    assert seen == [0, 1, 3]


def test_a_swap_under_load_loses_no_request_and_closes_what_was():
    closed = []

    async def body(executor):
        answers, stop = [], asyncio.Event()

        async def client(number):
            while not stop.is_set():
                answers.append(await executor.submit({"n": number}, deadline_ms=9000))

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for version in ("2", "3"):
            await asyncio.sleep(0.05)
            await executor.swap(slow_line(version, closed))
            assert executor.graph.version == version
        await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*clients)
        return answers

    answers = ask(slow_line("1", closed), body)
    versions = [answer["version"] for answer in answers]
    assert set(versions) == {"1", "2", "3"}
    # Models and tiers are of one version: what a stage saw is what the answer says.
    assert all(answer["items"][1] == answer["version"] for answer in answers)
    assert closed == ["1", "2", "3"]


def slow_line(version, closed):
    def run(payloads):
        time.sleep(0.002)
        return [{"answer": {"items": [payload["request"]["n"], version]}} for payload in payloads]

    stages = (Stage("parse", parse, kind="inline", at_door=True), Stage("work", run, ("parse",)))
    return Graph(stages, version=version, close=lambda: closed.append(version))


def test_a_drained_executor_finishes_what_it_has_and_takes_no_more():
    async def body():
        executor = LocalExecutor(slow_line("1", []))
        with pytest.raises(OverloadedError, match="takes no requests"):
            await executor.submit({"n": 1})
        await executor.start()
        asking = asyncio.create_task(executor.submit({"n": 1}))
        await asyncio.sleep(0)
        await executor.drain()
        with pytest.raises(OverloadedError):
            await executor.submit({"n": 2})
        assert not executor.report()["ready"]
        return await asking

    assert asyncio.run(body())["items"] == [1, "1"]


def test_draining_gives_up_what_takes_too_long():
    stop = threading.Event()

    async def body():
        executor = LocalExecutor(graph_of(lambda payloads: [{"a": stop.wait(20)} for _ in payloads]))
        await executor.start()
        asking = asyncio.create_task(executor.submit({"n": 1}, deadline_ms=60_000))
        await asyncio.sleep(0.02)
        await executor.drain(0.05)
        stop.set()
        with pytest.raises(OverloadedError, match="shuts down"):
            await asking

    asyncio.run(body())


def writing(payload):
    yield from payload["request"]["text"].split()
    yield {"answer": {"text": payload["request"]["text"]}}


WRITER = Graph((Stage("write", writing, streams=True, plan=StagePlan(max_batch=1)),), kinds=frozenset({"generate"}))


def test_a_streamed_answer_comes_in_pieces_and_at_the_end_whole():
    async def body(executor):
        return [piece async for piece in executor.stream({"text": "one two three"})]

    *pieces, answer = ask(WRITER, body)
    assert pieces == ["one", "two", "three"]
    assert answer["text"] == "one two three"
    assert "write" in answer["trace"]


def test_a_stage_that_streams_also_answers_in_one():
    async def body(executor):
        return await executor.submit({"text": "one two"}, kind="generate")

    assert ask(WRITER, body)["text"] == "one two"


def test_a_slow_reader_holds_its_writer_back_and_one_that_goes_stops_it():
    written = []

    def endless(payload):
        for number in range(10_000):
            written.append(number)
            yield str(number)

    async def body(executor):
        pieces = executor.stream({}, deadline_ms=20_000)
        async for piece in pieces:
            if piece == "3":
                break
        await asyncio.sleep(0.05)
        held = len(written)
        await pieces.aclose()
        await executor.drain(5)
        return held

    graph = Graph((Stage("write", endless, streams=True),), kinds=frozenset({"generate"}))
    held = ask(graph, body, pieces=4)
    assert held <= 4 + 4 + 2
    assert len(written) <= held + 1


def test_an_error_in_the_middle_of_a_stream_reaches_the_reader():
    def broken(payload):
        yield "one"
        raise ValueError("a secret")

    async def body(executor):
        pieces = executor.stream({})
        first = await anext(pieces)
        with pytest.raises(StageError, match="ValueError"):
            await anext(pieces)
        return first

    assert ask(Graph((Stage("write", broken, streams=True),), kinds=frozenset({"generate"})), body) == "one"


def test_impossible_settings_are_told_at_once():
    with pytest.raises(ConfigError, match=r"deadline_ms.*\n.*pieces"):
        LocalConfig(deadline_ms=0, pieces=-1)


def test_branches_join_with_real_threads():
    stages = (
        Stage("left", adding("a"), plan=StagePlan(workers=2, queue_cap=100)),
        Stage("right", adding("b"), plan=StagePlan(workers=2, max_batch=3, queue_cap=100)),
        Stage("join", adding("c"), ("left", "right")),
        Stage("respond", respond, ("join",), kind="inline"),
    )
    answers = ask(Graph(stages), lambda executor: gathered(executor, range(100), deadline_ms=9000))
    assert [answer["items"] for answer in answers] == [[number, "a", "b", "c"] for number in range(100)]
