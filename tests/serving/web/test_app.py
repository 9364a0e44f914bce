"""The server over an executor without a model: what it takes, what it refuses, and what it says then."""

import json
import logging
import sys
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from m6rec.errors import (
    CacheError,
    ConfigError,
    DataError,
    DeadlineError,
    ItemTakenError,
    ItemUnknownError,
    JournalError,
    OverloadedError,
    RunError,
    StageError,
)
from m6rec.serving.web.app import AppConfig, make_app
from m6rec.serving.web.logs import JsonLines
from m6rec.serving.web.security import Gate, new_key, read_keys
from tests.serving.fake_executor import ANSWERS, ITEMS, FakeExecutor


class Items:
    """A catalogue that remembers what it was told."""

    def __init__(self, error=None):
        self.error, self.told = error, []

    def __len__(self):
        return 36

    def get(self, key):
        return {"id": key, "title": "red shoes"} if key == "g01/a b" else None

    def add(self, items):
        self._tell("add", items)

    def change(self, items):
        self._tell("change", items)

    def remove(self, ids):
        self._tell("remove", ids)

    def close(self):
        self.told.append("closed")

    def _tell(self, verb, what):
        if self.error is not None:
            raise self.error
        self.told.append((verb, what))


@pytest.fixture
def executor():
    return FakeExecutor()


@pytest.fixture
def items():
    return Items()


@pytest.fixture
def client(executor, items):
    config = AppConfig(max_body_bytes=100_000)
    with TestClient(make_app(executor, items, config=config), raise_server_exceptions=False) as client:
        yield client


def fault(response, status, kind):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == kind
    return error["message"]


class TestRequests:
    @pytest.mark.parametrize(
        ("path", "body", "shown"),
        [
            ("recommend", {"history": "red shirt", "k": 2, "diversity": 0.5}, {"items": ITEMS}),
            ("retrieve", {"history": ["red shirt", {"item": "g07", "verb": "buy", "time": 17}]}, {"items": ITEMS}),
            ("rank", {"candidates": ["g01", {"title": "a new one", "price": 3.5}]}, {"items": ITEMS}),
            ("score", {"text": ["bought a lamp"]}, {"scores": [-3.5]}),
            ("explain", {"item": "g01", "history": [{"query": "shoes"}]}, {"text": "it is red too"}),
            ("create", {"history": [["red shirt"], ["blue lamp"]], "n": 2}, ANSWERS["create"]),
            ("chat", {"turns": ["hello", {"speaker": "SYSTEM", "text": "hi", "items": []}]}, ANSWERS["chat"]),
            ("generate", {"text": ["a [MASK] lamp"]}, ANSWERS["generate"]),
        ],
    )  # fmt: skip
    def test_each_reaches_the_executor_as_it_was_sent(self, client, executor, path, body, shown):
        response = client.post(f"/v1/{path}", json=body)
        assert response.status_code == 200, response.text
        assert shown.items() <= response.json().items()
        assert response.json()["rung"] == "full"
        assert response.json()["trace"]["rank"]["ms"] == 3.0
        kind, asked, deadline_ms = executor.asked[-1]
        assert (kind, asked) == (path, body)
        assert deadline_ms == AppConfig().limit_ms(path)

    def test_a_deadline_is_the_clients(self, client, executor):
        client.post("/v1/recommend", json={"deadline_ms": 70})
        assert executor.asked[-1] == ("recommend", {}, 70)

    def test_a_candidate_that_comes_twice_is_ranked_once(self, client, executor):
        stranger = {"title": "a new one", "price": 3}
        client.post("/v1/rank", json={"candidates": ["g02", stranger, "g01", "g02", stranger]})
        assert executor.asked[-1][1]["candidates"] == ["g02", stranger, "g01"]

    def test_a_long_history_is_read(self, client, executor):
        history = [f"g{number % 36:02d}" for number in range(5_000)]
        assert client.post("/v1/recommend", json={"history": history}).status_code == 200
        assert len(executor.asked[-1][1]["history"]) == 5_000


class TestStreams:
    @pytest.mark.parametrize(("path", "body"), [("generate", {"text": "a"}), ("chat", {"turns": ["hello"]})])
    def test_pieces_and_at_the_end_the_answer(self, client, executor, path, body):
        with client.stream("POST", f"/v1/{path}", json={**body, "stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = read_events("".join(response.iter_text()))
        assert [name for name, _ in events] == ["piece", "piece", "piece", "answer"]
        assert "".join(data["text"] for name, data in events if name == "piece") == "a red lamp"
        assert events[-1][1]["version"] == "v1"
        assert executor.told == ["stream closed"]

    def test_what_goes_wrong_in_the_middle_is_the_last_event(self, client, executor):
        executor.error = StageError("write", "failed")
        with client.stream("POST", "/v1/generate", json={"text": "a", "stream": True}) as response:
            events = read_events("".join(response.iter_text()))
        assert events[-1][0] == "error"
        assert events[-1][1]["error"]["type"] == "stage"


def read_events(text):
    parts = [part.split("\n") for part in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


class TestMalformed:
    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b'{"k": }',
            b"[" * 50_000,
            b"\xff\xfe{}",
            b'{"history": "caf\xe9"}',
            b'{"history": "\\ud83d"}',
            b"null x",
        ],
    )
    def test_what_is_no_json_or_no_text(self, client, body):
        response = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
        fault(response, 400, "malformed")

    @pytest.mark.parametrize(
        ("path", "body", "told"),
        [
            ("recommend", {"histroy": "red"}, "histroy"),
            ("recommend", {"k": 0}, "k"),
            ("recommend", {"k": 10**9}, "k"),
            ("recommend", {"history": 7}, "history"),
            ("recommend", {"history": [{"item": "g01", "time": 1e300}]}, "time"),
            ("recommend", {"history": ["x"] * 10_001}, "history"),
            ("recommend", {"deadline_ms": -1}, "deadline_ms"),
            ("rank", {"candidates": []}, "candidates"),
            ("rank", {"candidates": [f"g{number}" for number in range(5_000)]}, "candidates"),
            ("rank", {"candidates": [{"title": {"deep": {"er": 1}}}]}, "candidates"),
            ("rank", {}, "candidates"),
            ("explain", {"item": ""}, "item"),
            ("chat", {"turns": [{"text": "hi", "speaker": "ROBOT"}]}, "speaker"),
            ("recommend", [], "body"),
        ],
    )
    def test_what_does_not_fit_says_where(self, client, path, body, told):
        assert told in fault(client.post(f"/v1/{path}", json=body), 422, "request")

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({"history": [{"item": "g01", "verb": 3}, "g02"]}, {"body.history.0.verb"}),
            ({"history": [{"item": "g01", "time": "soon"}, None]}, {"body.history.0.time", "body.history.1"}),
            ({"history": 7}, {"body.history"}),
            ({"k": "many", "bloc": []}, {"body.k", "body.bloc"}),
        ],
    )
    def test_a_field_is_named_as_it_was_sent(self, client, body, said):
        response = client.post("/v1/recommend", json=body)
        assert {each["field"] for each in response.json()["error"]["fields"]} == said

    def test_no_json_says_where_it_ends(self, client):
        response = client.post("/v1/recommend", content=b'{"k": }', headers={"content-type": "application/json"})
        assert "at character 6" in fault(response, 400, "malformed")

    def test_numbers_that_are_none(self, client):
        for number in ("NaN", "1e999", "9" * 5_000):
            body = b'{"history": [{"item": "g01", "time": %s}]}' % number.encode()
            response = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
            assert response.status_code in (400, 422), response.text

    def test_nothing_of_what_was_sent_comes_back(self, client):
        response = client.post("/v1/recommend", json={"history": 7, "secret": "my aunt"})
        assert "my aunt" not in response.text

    def test_a_body_that_is_too_long(self, client):
        fault(client.post("/v1/recommend", json={"history": "x" * 200_000}), 413, "size")

    def test_a_long_body_that_does_not_say_so(self, client):
        response = client.post("/v1/recommend", content=(b"x" * 1000 for _ in range(300)))
        fault(response, 413, "size")

    def test_another_content_type(self, client):
        fault(client.post("/v1/recommend", data={"history": "red"}), 415, "content_type")

    def test_another_path_or_method(self, client):
        fault(client.post("/v1/nothing", json={}), 404, "not_found")
        fault(client.get("/v1/recommend"), 405, "method")


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "status", "kind"),
        [
            (DataError("no such item"), 422, "request"),
            (ConfigError("k: got 0"), 422, "request"),
            (RunError("no run talks"), 501, "not_served"),
            (DeadlineError(10), 504, "deadline"),
            (StageError("rank", "hangs"), 500, "stage"),
            (OverloadedError("the queue is full", 1.2), 503, "overloaded"),
        ],
    )
    def test_each_error_has_its_code_and_its_words(self, client, executor, error, status, kind):
        executor.error = error
        assert fault(client.post("/v1/recommend", json={}), status, kind) == str(error)

    def test_what_no_run_here_does(self, client, executor):
        executor.graph = replace(executor.graph, kinds=frozenset({"recommend"}))
        assert "recommend" in fault(client.post("/v1/rank", json={"candidates": ["g01"]}), 501, "not_served")

    def test_refused_says_when_to_come_again(self, client, executor):
        executor.error = OverloadedError("the queue is full", 1.2)
        assert client.post("/v1/recommend", json={}).headers["retry-after"] == "2"

    @pytest.mark.parametrize("error", [ZeroDivisionError("my aunt's address"), CacheError("my aunt's address")])
    def test_the_unexpected_keeps_its_words_to_itself(self, client, executor, error, caplog):
        executor.error = error
        fault(client.post("/v1/recommend", json={}), 500, "internal")
        assert type(error).__name__ in caplog.text
        assert "aunt" not in caplog.text
        executor.error = None
        assert client.post("/v1/recommend", json={}).status_code == 200

    def test_an_executor_that_forgets_the_time(self, client, executor, monkeypatch):
        monkeypatch.setattr("m6rec.serving.web.routes.GRACE_S", 0.01)
        executor.hang = True
        fault(client.post("/v1/recommend", json={"deadline_ms": 10}), 504, "deadline")
        assert executor.told == ["cancelled"]


class TestItems:
    def test_each_verb_reaches_the_catalogue(self, client, items):
        new = {"id": "n1", "title": "yellow teapot", "price": 3.5, "tags": ["a", "b"]}
        assert client.post("/v1/items", json={"items": [new]}).status_code == 201
        changed = client.put("/v1/items/a%2Fb", json={"title": "green teapot", "id": "another"})
        assert changed.json() == {"items": 36}
        assert client.delete("/v1/items/n1").status_code == 200
        assert items.told == [
            ("add", [new]),
            ("change", [{"id": "a/b", "title": "green teapot"}]),
            ("remove", ["n1"]),
        ]
        assert client.get("/v1/items/g01%2Fa%20b").json() == {"id": "g01/a b", "title": "red shoes"}
        fault(client.get("/v1/items/n9"), 404, "not_found")

    @pytest.mark.parametrize(
        ("error", "status", "kind"),
        [
            (ItemTakenError("taken"), 409, "conflict"),
            (ItemUnknownError("unknown"), 404, "not_found"),
            (DataError("no text"), 422, "request"),
            (JournalError("disk full; nothing was changed"), 507, "storage"),
        ],
    )
    def test_what_cannot_be(self, client, items, error, status, kind):
        items.error = error
        assert fault(client.post("/v1/items", json={"items": [{"id": "n", "title": "t"}]}), status, kind) == str(error)

    @pytest.mark.parametrize(
        "item", [{"id": "n"}, {"title": "t"}, {"id": "n", "title": " "}, {"id": "a\nb", "title": "t"}]
    )
    def test_what_is_no_item(self, client, items, item):
        fault(client.post("/v1/items", json={"items": [item]}), 422, "request")
        assert not items.told

    def test_without_a_catalogue(self, executor):
        with TestClient(make_app(executor)) as client:
            fault(client.delete("/v1/items/n1"), 501, "not_served")


class TestKeys:
    @pytest.fixture
    def keyed(self, executor, tmp_path):
        key = new_key(tmp_path / "keys", "shop", per_minute=2)
        now = [0.0]
        gate = Gate(read_keys(tmp_path / "keys"), clock=lambda: now[0])
        with TestClient(make_app(executor, gate=gate)) as client:
            yield client, key, now

    def test_who_has_one_is_let_in(self, keyed):
        client, key, _ = keyed
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
            assert client.post("/v1/recommend", json={}, headers=headers).status_code == 200

    @pytest.mark.parametrize("headers", [{}, {"x-api-key": "m6_wrong"}, {"authorization": "Basic x"}])
    def test_who_has_none_is_not(self, keyed, executor, headers):
        client, _, _ = keyed
        response = client.post("/v1/recommend", json={}, headers=headers)
        fault(response, 401, "key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert not executor.asked
        assert client.get("/healthz").status_code == 200

    def test_only_so_often(self, keyed):
        client, key, now = keyed
        codes = [client.post("/v1/recommend", json={}, headers={"x-api-key": key}).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        response = client.post("/v1/recommend", json={}, headers={"x-api-key": key})
        fault(response, 429, "rate")
        assert response.headers["retry-after"] == "30"
        now[0] += 30
        assert client.post("/v1/recommend", json={}, headers={"x-api-key": key}).status_code == 200


class TestWatching:
    def test_ready_once_started_and_not_once_drained(self, executor, items):
        app = make_app(executor, items)
        assert TestClient(app).get("/readyz").status_code == 503
        with TestClient(app) as client:
            assert client.get("/readyz").json() == {"ready": True, "version": "v1"}
        assert TestClient(app).get("/readyz").status_code == 503
        assert executor.told == ["drained"]
        assert items.told == ["closed"]

    def test_figures(self, client):
        client.post("/v1/recommend", json={})
        client.post("/v1/recommend", json={"k": 0})
        text = client.get("/metrics").text
        for line in (
            'm6rec_requests_total{route="/v1/recommend",rung="full",status="200"} 1.0',
            'm6rec_requests_total{route="/v1/recommend",rung="",status="422"} 1.0',
            'm6rec_stage_queued{stage="rank"} 2.0',
            'm6rec_stage_seconds{quantile="p50",stage="rank",what="run"} 0.004',
            'm6rec_tier_hits_total{tier="query"} 3.0',
            "m6rec_catalogue_items 36.0",
        ):
            assert line in text.splitlines()

    def test_the_log_has_no_personal_text(self, client, caplog):
        caplog.set_level(logging.INFO)
        client.post("/v1/recommend", json={"history": "my aunt"}, headers={"x-request-id": "abc-1"})
        client.get("/v1/items/my%20aunt?who=my%20aunt")
        lines = [record.fields for record in caplog.records if record.name == "m6rec.access"]
        assert [(line["route"], line["status"]) for line in lines] == [
            ("/v1/recommend", 200),
            ("/v1/items/{item_id:path}", 404),
        ]
        assert lines[0]["request"] == "abc-1"
        assert lines[0]["rung"] == "full"
        ours = [JsonLines().format(record) for record in caplog.records if record.name.startswith("m6rec")]
        assert json.loads(ours[-1])["status"] == 404
        assert "aunt" not in "".join(ours)

    @pytest.mark.parametrize("personal", [False, True])
    def test_errors_are_logged_without_their_words(self, personal):
        try:
            raise ValueError("my aunt")
        except ValueError:
            record = logging.LogRecord("m6rec", logging.ERROR, "", 0, "batch failed", (), sys.exc_info())
        line = json.loads(JsonLines(personal).format(record))
        assert line["error"].startswith("ValueError")
        assert ("my aunt" in line["error"]) == personal
        assert "test_app.py" in line["at"]

    def test_every_answer_has_its_requests_name(self, client):
        assert client.get("/healthz", headers={"x-request-id": "a b\n"}).headers["x-request-id"] != "a b\n"
        assert client.get("/healthz", headers={"x-request-id": "a-b"}).headers["x-request-id"] == "a-b"


def test_limits_that_cannot_be():
    with pytest.raises(ConfigError, match="max_body_bytes"):
        AppConfig(max_body_bytes=0)
