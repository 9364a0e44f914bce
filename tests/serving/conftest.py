"""Servers at work: any app in a thread of the tests' process, and ``m6rec serve`` in a process of its own."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def listening() -> Callable[..., Any]:
    """Return ``listening(make_app)``: a context in which an app, made in its own loop, answers; gives its address."""

    @contextmanager
    def serve(make_app: Callable[[], Any]) -> Iterator[str]:
        import uvicorn

        from m6rec.serving.server import PatientProtocol

        address = socket.create_server(("127.0.0.1", 0))
        server: uvicorn.Server

        async def live() -> None:
            nonlocal server
            config = uvicorn.Config(make_app(), http=PatientProtocol, ws="none", log_config=None, access_log=False)
            server = uvicorn.Server(config)
            up.set()
            await server.serve(sockets=[address])

        up = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(live()))
        thread.start()
        up.wait()
        try:
            yield f"http://127.0.0.1:{address.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            address.close()
            assert not thread.is_alive()

    return serve


@dataclass
class Served:
    """``m6rec serve`` in a process of its own, ready.

    Args:
        process: its.
        address: without a path.
        seconds: that it says it took to be ready.
    """

    process: subprocess.Popen[str]
    address: str
    seconds: float

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(how)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Served]]:
    """Return ``serve(*words)``: a server started with these words; ended by the tests or after them."""
    begun: list[Served] = []

    def start(*words: object) -> Served:
        process = subprocess.Popen(
            [sys.executable, "-m", "m6rec", "serve", *map(str, words), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        told = re.match(r"(http://\S+) is ready after ([\d.]+) s", line)
        assert told, f"{line!r} {process.wait(30)}"
        begun.append(Served(process, told[1], float(told[2])))
        return begun[-1]

    yield start
    for server in begun:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)
        assert server.process.stdout is not None
        server.process.stdout.close()


@pytest.fixture(scope="session")
def shop_server(serve: Callable[..., Served], retrieval_run: Path, ranking_run: Path) -> str:
    """Return the address of a server that retrieves and ranks the little shop's goods."""
    return serve(retrieval_run, ranking_run, "--deadline-ms", 30_000).address
