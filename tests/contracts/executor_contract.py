"""What every executor must keep. Inherit, and say how one is made; answers are held against plain Python."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from m6rec.errors import ConfigError, DataError, DeadlineError, OverloadedError, StageError
from m6rec.serving.executors.base import Executor
from m6rec.serving.graph import Graph
from m6rec.serving.stage import Payload, Stage, StagePlan, Update


def parse(payloads: list[Payload]) -> list[Update]:
    return [{"key": None} for _ in payloads]


def double(payloads: list[Payload]) -> list[Update | Exception]:
    """Double a number; 13 breaks the whole batch, 14 is refused as it is, 15 takes its time."""
    numbers = [payload["request"]["n"] for payload in payloads]
    if 13 in numbers:
        raise ValueError("13 of all numbers")
    time.sleep(0.5 if 15 in numbers else 0.001)
    return [DataError("got 14, expected any other") if n == 14 else {"double": 2 * n} for n in numbers]


def square(payloads: list[Payload]) -> list[Update]:
    return [{"square": payload["request"]["n"] ** 2} for payload in payloads]


def join(payloads: list[Payload]) -> list[Update]:
    return [{"sum": payload["double"] + payload["square"], "notes": {"joined": True}} for payload in payloads]


def respond(payloads: list[Payload]) -> list[Update]:
    return [{"answer": {"sum": payload["sum"]}} for payload in payloads]


def write(payload: Payload) -> Iterator[str | Update]:
    """Write the numbers up to one; 13 breaks in the middle."""
    words = [f"{n} " for n in range(payload["request"]["n"])]
    for word in words:
        if word == "13 ":
            raise ValueError("13 of all numbers")
        yield word
    yield {"answer": {"text": "".join(words)}}


def lists(payload: Payload) -> bool:
    return bool(payload["kind"] == "recommend")


def writes(payload: Payload) -> bool:
    return bool(payload["kind"] == "generate")


def diamond(version: str = "1", **plan: Any) -> Graph:
    """Return parse -> (double, square) -> join -> respond, and a stage that writes beside them."""
    plans = StagePlan(**plan)
    stages = (
        Stage("parse", parse, kind="inline", at_door=True),
        Stage("double", double, ("parse",), wants=lists, plan=plans),
        Stage("square", square, ("parse",), wants=lists, plan=plans),
        Stage("join", join, ("double", "square"), wants=lists, plan=plans),
        Stage("respond", respond, ("join",), kind="inline", wants=lists),
        Stage("write", write, ("parse",), wants=writes, streams=True),
    )
    return Graph(stages, kinds=frozenset({"recommend", "generate"}), version=version)


def expected(n: int) -> int:
    """Return what the diamond answers."""
    return 2 * n + n * n


class ExecutorContract:
    """The promises of the protocol."""

    def make(self, graph: Graph) -> Executor:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def host(self) -> Iterator["Host"]:
        """Return one executor for all tests that leave it as it is, for its start may take long."""
        host = Host(self.make(diamond(max_batch=4, workers=2, queue_cap=200)))
        yield host
        host.close()

    def test_it_is_an_executor(self, host: "Host") -> None:
        assert isinstance(host.executor, Executor)

    def test_everybody_gets_their_own_answer(self, host: "Host") -> None:
        numbers = [n for n in range(60) if n not in (13, 14, 15)]
        answers = host.ask(numbers)
        assert [answer["sum"] for answer in answers] == [expected(n) for n in numbers]
        assert {(answer["rung"], answer["version"]) for answer in answers} == {("full", "1")}
        for answer in answers:
            assert {"double", "square", "join"} <= set(answer["trace"])
            assert answer["trace"]["join"]["joined"]
            assert answer["trace"]["join"]["ms"] > 0

    def test_who_breaks_a_batch_breaks_alone(self, host: "Host") -> None:
        answers = host.ask([12, 13, 14, 16])
        assert [answers[0]["sum"], answers[3]["sum"]] == [expected(12), expected(16)]
        assert isinstance(answers[1], StageError)
        assert "ValueError" in str(answers[1])
        assert "13 of all" not in str(answers[1])  # what a stage says may hold what somebody wrote
        assert isinstance(answers[2], DataError)
        assert str(answers[2]) == "got 14, expected any other"

    def test_a_request_ends_at_its_deadline(self, host: "Host") -> None:
        (answer,) = host.ask([15], deadline_ms=60)
        assert isinstance(answer, DeadlineError | OverloadedError)

    def test_an_unknown_kind_is_the_callers_mistake(self, host: "Host") -> None:
        (answer,) = host.ask([1], kind="recomend")
        assert isinstance(answer, ConfigError)
        assert "did you mean recommend" in str(answer)

    def test_a_stream_comes_in_pieces_and_whole(self, host: "Host") -> None:
        *pieces, answer = host.stream({"n": 5})
        assert pieces == ["0 ", "1 ", "2 ", "3 ", "4 "]
        assert answer["text"] == "".join(pieces)

    def test_a_stream_that_breaks_says_so(self, host: "Host") -> None:
        with pytest.raises(StageError):
            host.stream({"n": 20})

    def test_a_stream_may_be_left(self, host: "Host") -> None:
        assert host.stream({"n": 5}, most=2) == ["0 ", "1 "]
        assert host.stream({"n": 1})[0] == "0 "

    def test_its_figures_are_plain(self, host: "Host") -> None:
        host.ask([1])
        report = host.executor.report()
        assert report["ready"] is True
        assert report["requests"]["answered"] >= 1
        assert report["stages"]["double"]["done"] >= 1

    def test_a_swap_changes_the_version_and_loses_nobody(self) -> None:
        host = Host(self.make(diamond(queue_cap=200)))

        async def swapped() -> list[Any]:
            early = [asyncio.ensure_future(host.one(n)) for n in range(10)]
            await asyncio.sleep(0)
            await host.executor.swap(diamond("2", queue_cap=200))
            late = [asyncio.ensure_future(host.one(n)) for n in range(10)]
            return await asyncio.gather(*early, *late)

        try:
            answers = host.run(swapped())
            assert [answer["sum"] for answer in answers] == 2 * [expected(n) for n in range(10)]
            assert {answer["version"] for answer in answers[10:]} == {"2"}
            assert host.executor.graph.version == "2"
            host.run(host.executor.drain(5.0))
            assert isinstance(host.ask([1])[0], OverloadedError)
            assert host.executor.report()["ready"] is False
        finally:
            host.close()


class Host:
    """An executor on an event loop of its own.

    Args:
        executor: not started.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor, self._runner = executor, asyncio.Runner()
        self.run(executor.start())

    def run(self, doing: Any) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(doing, 120)

        return self._runner.run(bounded())

    async def one(self, n: int, deadline_ms: float = 60_000, kind: str = "recommend") -> Any:
        return await self.executor.submit({"n": n}, deadline_ms=deadline_ms, kind=kind)

    def ask(self, numbers: list[int], **settings: Any) -> list[Any]:
        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self.one(n, **settings) for n in numbers), return_exceptions=True)

        return list(self.run(all_of_them()))

    def stream(self, request: dict[str, Any], most: int = 1000) -> list[Any]:
        async def pieces() -> list[Any]:
            found: list[Any] = []
            streaming = self.executor.stream(request, deadline_ms=60_000)
            async for piece in streaming:
                found.append(piece)
                if len(found) == most:
                    break
            await streaming.aclose()
            return found

        return list(self.run(pieces()))

    def close(self) -> None:
        self.run(self.executor.drain(5.0))
        self._runner.close()
