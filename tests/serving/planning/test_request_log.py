"""The request log: what an executor was asked and what it met, without a word of it unless it is told to keep words."""

import asyncio
import json
import time

import pytest

from m6rec.errors import ConfigError, DataError, OverloadedError, RowError
from m6rec.serving.executors.local import LocalConfig, LocalExecutor
from m6rec.serving.graph import Graph
from m6rec.serving.planning.request_log import LoggedExecutor, RequestLogger, read_log, timed
from m6rec.serving.stage import Stage
from tests.serving.steps import line

SECRET = "a film that nobody may know of"


def served(path, requests, **options):
    """Serve requests one by one on a logged executor, and return the log's lines."""

    async def run():
        executor = LoggedExecutor(
            LocalExecutor(timed(line(max_batch=3)), LocalConfig(500)), RequestLogger(path, **options)
        )
        await executor.start()
        for request in requests:
            await executor.submit(request)
        assert executor.report()["requests"]["answered"] == len(requests)
        await executor.drain()

    asyncio.run(run())
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def test_a_request_is_told_by_what_it_met(tmp_path):
    lines = served(tmp_path / "logs" / "log.jsonl", [{"n": SECRET}, {"n": "other"}, {"n": SECRET}])
    assert SECRET not in (tmp_path / "logs" / "log.jsonl").read_text(encoding="utf-8")
    log = read_log(tmp_path / "logs" / "log.jsonl")
    assert [stage.name for stage in log.head.stages] == ["parse", "work", "respond"]
    assert log.head.stages[1].plan.max_batch == 3
    keys = [logged.key for logged in log.requests]
    assert keys[0] == keys[2] != keys[1]
    first = log.requests[0]
    assert (first.outcome, first.rung, first.deadline_ms, first.kind) == ("answered", "full", 500, "recommend")
    assert list(first.stages) == ["work"]
    assert 0 < first.stages["work"].ms <= first.ms
    assert 0 <= first.stages["work"].cpu_ms <= first.stages["work"].ms
    assert first.answer_bytes > 10
    assert len(lines) == 4


def test_requests_are_kept_where_that_is_asked_for(tmp_path):
    served(tmp_path / "log.jsonl", [{"n": SECRET}], keep_requests=True)
    assert read_log(tmp_path / "log.jsonl").requests[0].request == {"n": SECRET}


def test_a_core_is_not_blamed_for_waiting(tmp_path):
    def wait(payloads):
        time.sleep(0.05)
        return [{"answer": {}, "notes": {"of": "its own"}} for _ in payloads]

    async def run(graph):
        path = tmp_path / "log.jsonl"
        executor = LoggedExecutor(LocalExecutor(graph), RequestLogger(path))
        await executor.start()
        answer = await executor.submit({"n": 1})
        await executor.drain()
        return answer["trace"]["wait"], read_log(path).requests[0].stages["wait"]

    graph = Graph((Stage("wait", wait),))
    trace, visit = asyncio.run(run(timed(graph)))
    assert trace["of"] == "its own"
    assert visit.cpu_ms < 25 < visit.ms
    assert asyncio.run(run(graph))[1].cpu_ms is None


def test_keys_of_two_logs_tell_nothing_of_each_other(tmp_path):
    keys = {served(tmp_path / name, [{"n": SECRET}])[1]["key"] for name in ("one", "two")}
    assert len(keys) == 2


def test_only_what_the_last_graph_met_is_read(tmp_path):
    path = tmp_path / "log.jsonl"
    served(path, [{"n": 1}, {"n": 2}])
    served(path, [{"n": 3}])  # keys of another server: they may not be taken for equal
    assert len(read_log(path).requests) == 1


def test_a_swap_to_the_same_stages_goes_on(tmp_path):
    async def run():
        executor = LoggedExecutor(LocalExecutor(line()), RequestLogger(tmp_path / "log.jsonl"))
        await executor.start()
        await executor.submit({"n": 1})
        await executor.swap(line(version="1"))
        await executor.submit({"n": 1})
        await executor.swap(line(version="2", max_batch=2))
        await executor.submit({"n": 1})
        await executor.drain()

    asyncio.run(run())
    log = read_log(tmp_path / "log.jsonl")
    assert (len(log.requests), log.head.version) == (1, "2")
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "cut.jsonl").write_text("\n".join(lines[:4]) + "\n", encoding="utf-8")
    assert len(read_log(tmp_path / "cut.jsonl").requests) == 2


def test_what_went_wrong_is_logged_too(tmp_path):
    async def run():
        executor = LoggedExecutor(LocalExecutor(line()), RequestLogger(tmp_path / "log.jsonl"))
        await executor.start()
        with pytest.raises(ConfigError):
            await executor.submit({"n": 1}, kind="nonsense")
        await executor.inner.drain()
        with pytest.raises(OverloadedError):
            await executor.submit({"n": 1})
        await executor.drain()

    asyncio.run(run())
    assert [logged.outcome for logged in read_log(tmp_path / "log.jsonl").requests] == ["bad", "refused"]


def test_a_stream_is_logged_at_its_end(tmp_path):
    def write(payload):
        yield from ("red ", "lamp")
        yield {"answer": {"text": "red lamp"}}

    async def run():
        graph = Graph((Stage("write", write, streams=True),), kinds=frozenset({"generate"}))
        executor = LoggedExecutor(LocalExecutor(graph), RequestLogger(tmp_path / "log.jsonl"))
        await executor.start()
        pieces = [piece async for piece in executor.stream({"n": 1})]
        await executor.drain()
        return pieces

    assert asyncio.run(run())[:2] == ["red ", "lamp"]
    (logged,) = read_log(tmp_path / "log.jsonl").requests
    assert (logged.outcome, logged.kind, list(logged.stages)) == ("answered", "generate", ["write"])


class TestMistakes:
    HEAD = '{"format": 1, "version": "0", "stages": [{"name": "work"}]}\n'
    REQUEST = '{"at": 1.0, "key": "k", "stages": {"work": {"ms": 2.0, "what the stage noted": 7}}}\n'

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (HEAD + REQUEST + '{"at": "soon", "key": "k"}\n', r"row 3, field '\*': at: got 'soon', expected float"),
            (HEAD + "[1]\n" + REQUEST, r"row 2.*expected one JSON object"),
            (HEAD + "{\n" + REQUEST, r"row 2.*no JSON"),
            (HEAD + '{"at": 1.0, "keyy": "k"}\n', r"did you mean key"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path, text, message):
        (tmp_path / "log.jsonl").write_text(text)
        with pytest.raises(RowError, match=message):
            read_log(tmp_path / "log.jsonl")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (REQUEST, "has no head"),
            (HEAD, "holds no requests; make a log"),
            ("", "holds no requests"),
            (HEAD.replace("1", "9", 1), "log format 9, this m6rec reads 1"),
        ],
    )
    def test_what_is_no_log(self, tmp_path, text, message):
        (tmp_path / "log.jsonl").write_text(text)
        with pytest.raises(DataError, match=message):
            read_log(tmp_path / "log.jsonl")
        with pytest.raises(DataError, match="cannot be read"):
            read_log(tmp_path / "nowhere.jsonl")

    def test_a_writer_that_was_killed_leaves_half_a_line(self, tmp_path):
        (tmp_path / "log.jsonl").write_text(self.HEAD + self.REQUEST + self.REQUEST[:20])
        (logged,) = read_log(tmp_path / "log.jsonl").requests
        assert logged.stages["work"].ms == 2.0
