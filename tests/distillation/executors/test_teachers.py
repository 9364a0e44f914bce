"""Every place where a teacher runs, against one contract."""

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from m6rec.distillation.executors.local import LocalConfig, LocalExecutor
from m6rec.distillation.executors.remote import RemoteConfig, RemoteExecutor
from m6rec.distillation.service import CARD_PATH, LABEL_PATH, MOST_BYTES, TeacherServer
from m6rec.errors import ConfigError, DistillationError
from tests.contracts.teacher_contract import TeacherContract
from tests.distillation.toy_teacher import ToyTeacher, open_toy, request


class TestLocal(TeacherContract):
    def make(self, open_teacher=open_toy):
        return LocalExecutor(open_teacher, LocalConfig(threads=1))

    def kill(self, executor):
        os.kill(executor.pid, signal.SIGKILL)

    def test_it_leaves_when_its_student_is_gone(self):
        executor = self.make()
        executor.open()
        executor._pipe.close()  # what the kernel does for a student that was killed
        executor._process.join(60)
        assert executor._process.exitcode == 0
        with pytest.raises(ProcessLookupError):
            os.kill(executor.pid, 0)


class _Served:
    """A teacher's server that can be ended as a crash ends it: its connections fall."""

    def __init__(self):
        self.server = TeacherServer(ToyTeacher())
        self.sockets = []
        accept = self.server.get_request

        def remembered():
            connection, address = accept()
            self.sockets.append(connection)
            return connection, address

        self.server.get_request = remembered
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def kill(self):
        self.server.shutdown()
        self.server.server_close()
        for connection in self.sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def served() -> Iterator[_Served]:
    each = _Served()
    yield each
    each.kill()


class TestRemote(TeacherContract):
    servers: dict[str, _Served]

    @pytest.fixture(autouse=True, scope="class")
    def let_go(self, request):
        request.cls.servers = {}
        yield
        for server in request.cls.servers.values():
            server.kill()

    def make(self, open_teacher=open_toy):
        if open_teacher is not open_toy:  # nobody serves what cannot be opened
            return RemoteExecutor(None, RemoteConfig("http://127.0.0.1:9"))
        server = _Served()
        self.servers[server.server.url] = server
        return RemoteExecutor(None, RemoteConfig(server.server.url))

    def kill(self, executor):
        self.servers[executor.config.url].kill()

    @pytest.mark.parametrize("url", ["", "10.0.0.1:80", "ftp://here"])
    def test_no_address_is_told_at_once(self, url):
        with pytest.raises(ConfigError, match="expected remote:http://HOST:PORT"):
            RemoteExecutor(None, RemoteConfig(url))


class TestService:
    def ask(self, server, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        found = response.status, response.read()
        connection.close()
        return found

    def test_other_paths_and_sizes_are_refused(self, served):
        assert self.ask(served.server, "GET", "/")[0] == 404
        assert self.ask(served.server, "POST", CARD_PATH, b"x")[0] == 404
        assert self.ask(served.server, "POST", LABEL_PATH, headers={"Content-Length": str(MOST_BYTES + 1)})[0] == 413

    def test_a_stranger_is_no_teacher(self, served):
        served.server._teacher = None
        served.server.card = lambda: b"<html>"
        with pytest.raises(DistillationError, match="is that address a teacher's"):
            RemoteExecutor(None, RemoteConfig(served.server.url)).open()

    def test_students_wait_their_turn(self, served):
        executors = [RemoteExecutor(None, RemoteConfig(served.server.url)) for _ in range(2)]
        for executor in executors:
            executor.open()
        started = time.monotonic()
        threads = [threading.Thread(target=each.label, args=(request(seconds=0.3),)) for each in executors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started >= 0.6  # a teacher computes one batch at a time
        for executor in executors:
            executor.close()


@pytest.mark.slow
class TestRay(TeacherContract):
    @pytest.fixture(autouse=True, scope="class")
    def cluster(self):
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
        yield
        ray.shutdown()

    def make(self, open_teacher=open_toy):
        from m6rec.distillation.executors.ray import RayConfig, RayExecutor

        return RayExecutor(open_teacher, RayConfig(num_cpus=0.5))

    def kill(self, executor):
        import ray

        ray.kill(executor._actor)
