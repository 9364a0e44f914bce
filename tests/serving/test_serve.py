"""A server process: ready soon, hard to disturb, and gone without losing anything."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from m6rec.errors import ConfigError, RunError
from m6rec.serving.server import ServerConfig, bind, open_server
from m6rec.serving.web.app import AppConfig, make_app
from tests.serving.fake_executor import FakeExecutor

ROOT = Path(__file__).parents[2]
HISTORIES = {
    "none": [],
    "empty": "",
    "unknown": ["nothing that anybody knows", "g999"],
    "5000": [f"g{number % 36:02d}" for number in range(5_000)],
    "odd": "\u2028 \u0000 x",
}


@pytest.fixture
def faked(listening):
    """Return an executor without a model, and the address of a server over it."""
    executor = FakeExecutor()
    config = AppConfig(body_timeout_s=0.2, drain_s=5)
    with listening(lambda: make_app(executor, config=config)) as address:
        yield executor, address


def connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def head(length):
    return (
        f"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )


class TestClients:
    def test_a_slow_one_is_told_so_and_nobody_waits_for_it(self, faked):
        _, address = faked
        with connect(address) as slow:
            slow.sendall(head(100).encode() + b'{"k": ')
            assert httpx.post(f"{address}/v1/recommend", json={}).status_code == 200
            answer = slow.makefile().read()
        assert answer.startswith("HTTP/1.1 408")
        assert '"slow"' in answer

    def test_one_that_says_nothing_whole_is_hung_up_on(self, listening, monkeypatch):
        monkeypatch.setattr("m6rec.serving.server.HEADERS_S", 0.1)
        with listening(lambda: make_app(FakeExecutor())) as address, connect(address) as slow:
            slow.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost")
            assert slow.recv(100) == b""
            assert httpx.get(f"{address}/healthz").status_code == 200

    @pytest.mark.parametrize("body", [{}, {"text": "a", "stream": True}], ids=["whole", "streamed"])
    def test_one_that_leaves_ends_its_request(self, faked, body):
        executor, address = faked
        executor.hang = True
        path = "generate" if body else "recommend"
        with connect(address) as gone:
            words = json.dumps(body)
            gone.sendall((head(len(words)).replace("recommend", path) + words).encode())
            if body:
                assert b"event: piece" in gone.recv(10_000) + gone.recv(10_000)
            else:
                wait_for(lambda: executor.asked)
        wait_for(lambda: executor.told)
        assert executor.told == ["stream closed" if body else "cancelled"]
        executor.hang = False
        assert httpx.post(f"{address}/v1/recommend", json={}).status_code == 200

    def test_one_that_leaves_in_the_middle_of_its_body(self, faked):
        executor, address = faked
        with connect(address) as gone:
            gone.sendall(head(100).encode() + b"{")
        assert httpx.post(f"{address}/v1/recommend", json={}).status_code == 200
        assert len(executor.asked) == 1


def wait_for(what):
    for _ in range(500):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened")


class TestRequests:
    """What people send to models that answer."""

    @pytest.fixture
    def client(self, shop_server):
        with httpx.Client(base_url=f"{shop_server}/v1", timeout=60) as client:
            yield client

    def test_a_list_says_what_made_it(self, client):
        answer = client.post("/recommend", json={"history": ["red shirt", {"query": "warm shoes"}], "k": 3}).json()
        assert len(answer["items"]) == 3
        assert answer["rung"] == "full"
        assert answer["version"]
        assert answer["trace"]["rank"]["ms"] > 0

    @pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
    def test_any_history_is_answered(self, client, history):
        found = client.post("/recommend", json={"history": history, "k": 3, "exclude_history": False})
        assert found.status_code == 200, found.text
        assert len(found.json()["items"]) == 3

    def test_many_candidates_and_doubles(self, client):
        strangers = [f"a thing of number {number}" for number in range(150)]
        found = client.post("/rank", json={"candidates": ["g01", "g02", *strangers, "g01"]})
        assert found.status_code == 200, found.text
        assert sorted(item["id"] for item in found.json()["items"]) == sorted({"g01", "g02", *strangers})

    @pytest.mark.parametrize(
        ("path", "body", "told"),
        [
            ("rank", {"candidates": [{"id": "g999"}]}, "neither known nor described"),
            ("recommend", {"history": [{"verb": "buy"}]}, "event 1"),
            ("rank", {"history": "red shirt"}, "candidates"),
        ],
    )
    def test_what_cannot_be_read_says_why(self, client, path, body, told):
        refused = client.post(f"/{path}", json=body)
        assert refused.status_code == 422
        assert told in refused.json()["error"]["message"]

    def test_only_and_never_some(self, client):
        asked = {"history": "red shirt", "k": 5, "allow": ["g04", "g05", "g06"], "block": ["g05"]}
        found = client.post("/retrieve", json=asked).json()["items"]
        assert {item["id"] for item in found} == {"g04", "g06"}

    def test_an_item_that_comes_changes_and_goes(self, client):
        asked = {"history": "yellow teapot", "k": 36}

        def titles():
            return {item["id"]: item["title"] for item in client.post("/recommend", json=asked).json()["items"]}

        before = titles()
        client.post("/items", json={"items": [{"id": "t/1", "title": "yellow teapot two"}]})
        assert titles()["t/1"] == "yellow teapot two"
        assert client.post("/rank", json={"candidates": ["t/1"]}).json()["items"][0]["title"] == "yellow teapot two"
        client.put("/items/t/1", json={"title": "green teapot"})
        assert titles()["t/1"] == "green teapot"
        assert client.get("/items/t/1").json() == {"id": "t/1", "title": "green teapot"}
        client.delete("/items/t/1")
        assert titles() == before
        assert client.delete("/items/t/1").status_code == 404


class TestProcess:
    def test_it_answers_adds_drains_and_starts_again_with_what_was_added(self, serve, retrieval_run, tmp_path):
        words = (retrieval_run, "--no-page", "--items-log", tmp_path / "items", "--deadline-ms", 30_000)
        first = serve(*words)
        item = {"id": "n1", "title": "yellow shirt", "category": "shirts"}
        with httpx.Client(base_url=first.address, timeout=30) as client:
            assert client.get("/readyz").json()["ready"]
            assert client.get("/").status_code == 404
            assert client.post("/v1/items", json={"items": [item]}).status_code == 201
            found = client.post("/v1/recommend", json={"history": "red shirt", "k": 36}).json()
            assert "n1" in [each["id"] for each in found["items"]]
            assert client.post("/v1/items", json={"items": [item]}).status_code == 409
            assert client.post("/v1/chat", json={"turns": ["hello"]}).status_code == 501
        assert first.end() == 0
        second = serve(*words)
        again = httpx.post(f"{second.address}/v1/recommend", json={"history": "red shirt", "k": 36}, timeout=30).json()
        assert [(each["id"], pytest.approx(each["score"], abs=1e-5)) for each in again["items"]] == [
            (each["id"], each["score"]) for each in found["items"]
        ]
        assert second.end(signal.SIGKILL) == -signal.SIGKILL

    @pytest.mark.slow
    def test_killed_at_any_moment_it_loses_nothing_acknowledged(self, serve, retrieval_run, tmp_path):
        known = set()
        for life in range(4):
            server = serve(retrieval_run, "--no-page", "--items-log", tmp_path / "items")
            with httpx.Client(base_url=server.address, timeout=30) as client:
                for key in known:
                    assert client.get(f"/v1/items/{key}").status_code == 200
                killer = threading.Timer(0.3 + 0.2 * life, server.process.kill)
                killer.start()
                try:
                    for number in range(1000):
                        item = {"id": f"n{life}-{number}", "title": f"lamp {life} {number}"}
                        if client.post("/v1/items", json={"items": [item]}).status_code == 201:
                            known.add(item["id"])
                except httpx.TransportError:
                    pass
                killer.join()
                server.process.wait(30)
        assert len(known) > 4

    def test_requests_under_way_are_finished_before_it_ends(self, listening):
        executor, answers = FakeExecutor(), []

        async def slowly(request, *, deadline_ms=None, kind="recommend"):
            executor.told.append("begun")
            await asyncio.sleep(0.3)
            return {"items": [], "rung": "full"}

        executor.submit = slowly

        def ask():
            answers.append(httpx.post(f"{address}/v1/recommend", json={}).status_code)

        client = threading.Thread(target=ask)
        with listening(lambda: make_app(executor)) as address:
            client.start()
            wait_for(lambda: executor.told)
        client.join()
        assert answers == [200]
        assert executor.told == ["begun", "drained"]


class TestRefused:
    @pytest.mark.parametrize("option", ["plan", "api_keys"])
    def test_files_that_are_not_there(self, retrieval_run, tmp_path, option):
        with pytest.raises(ConfigError, match="nowhere"):
            open_server(ServerConfig((retrieval_run,), **{option: tmp_path / "nowhere"}))

    def test_a_run_that_is_none(self, tmp_path):
        with pytest.raises(RunError):
            open_server(ServerConfig((tmp_path,)))

    def test_items_for_runs_without_a_catalogue(self, ranking_run, tmp_path):
        with pytest.raises(ConfigError, match="no run here retrieves"):
            open_server(ServerConfig((ranking_run,), items_log=tmp_path))

    def test_a_port_that_is_taken(self):
        with bind("127.0.0.1", 0) as first:
            first.listen()
            port = first.getsockname()[1]
            with pytest.raises(ConfigError, match=str(port)):
                bind("127.0.0.1", port)


def test_a_key_is_printed_once_and_its_file_opens_the_server(tmp_path, retrieval_run):
    from m6rec.serving.web.security import Gate, read_keys

    told = subprocess.run(
        [sys.executable, "-m", "m6rec", "api-key", str(tmp_path / "keys"), "shop", "--per-minute", "3"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    key = told.stdout.strip()
    assert key not in (tmp_path / "keys").read_text()
    (known,) = read_keys(tmp_path / "keys")
    assert Gate([known]).who(key) is known
    assert (known.name, known.per_minute) == ("shop", 3)


@pytest.mark.slow
def test_a_start_loads_nothing_that_only_training_or_the_page_needs(retrieval_run):
    code = (
        "import sys; from pathlib import Path; from m6rec.serving.server import ServerConfig, open_server;"
        "open_server(ServerConfig((Path(sys.argv[1]),))); print(*sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code, retrieval_run], capture_output=True, text=True, check=True)
    heavy = {"datasets", "faiss", "gradio", "matplotlib", "pandas", "peft", "pyarrow.dataset", "ray", "sklearn"}
    assert not heavy & set(told.stdout.split())
