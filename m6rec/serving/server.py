"""A server process: runs opened, composed with executor, catalogue and keys, behind one socket. The serving's root."""

import logging
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # its stubs would be one more package
import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from m6rec.api import load
from m6rec.errors import ConfigError
from m6rec.serving.catalogue import ServedCatalogue
from m6rec.serving.executors import EXECUTORS
from m6rec.serving.executors.base import Executor
from m6rec.serving.graphs import GraphConfig, recommender_graph, warm
from m6rec.serving.planning.plan import Plan, read_plan
from m6rec.serving.planning.planned import with_plan
from m6rec.serving.planning.request_log import LoggedExecutor, RequestLogger, kept_requests, read_log, timed
from m6rec.serving.web.app import AppConfig, make_app
from m6rec.serving.web.page.lazy import LazyPage
from m6rec.serving.web.page.mount import has_page, page_app
from m6rec.serving.web.security import Gate, read_keys

logger = logging.getLogger(__name__)

# Connections at once, beyond which new ones get 503 before anything of them is read.
MAX_CONNECTIONS = 2048
# How long a new connection may take to say what it wants.
HEADERS_S = 10.0


@dataclass(frozen=True)
class ServerConfig:
    """What is served, and how."""

    runs: tuple[Path, ...]
    """Run folders or Hub names, as :func:`m6rec.api.load` takes them."""
    executor: str = "local"
    """Name on the executors shelf; changes no answer."""
    index: str = "exact"
    """Name on the indexes shelf; speed only."""
    plan: Path | None = None
    """A plan file; null = the defaults."""
    items_log: Path | None = None
    """Folder of the catalogue's journal; null = changes last as long as the process."""
    api_keys: Path | None = None
    """A key file; null = everybody may ask."""
    log: Path | None = None
    """Where requests are logged for ``m6rec plan``; null = nowhere."""
    keep_requests: bool = False
    """Whether that log keeps the requests themselves, which are personal."""
    warm: Path | None = None
    """A log that keeps requests: what ranking them asks for most is held in memory from the start; speed only."""
    page: bool = True
    """Whether there is a page, where the extra for it is installed."""
    app: AppConfig = field(default_factory=AppConfig)
    """Limits."""


def open_server(config: ServerConfig) -> FastAPI:
    """Open runs and everything around them.

    Raises:
        M6RecError: a run, plan, journal or key file that cannot be used.
    """
    plan = Plan(threads=torch.get_num_threads()) if config.plan is None else read_plan(config.plan)
    torch.set_num_threads(plan.threads)
    gate = None if config.api_keys is None else Gate(read_keys(config.api_keys))
    recommender = load(*config.runs, index=config.index)
    catalogue = None
    if recommender.team.can_retrieve:
        catalogue = ServedCatalogue(recommender, config.items_log)
        assert recommender.catalog.offer  # made before anybody asks
    elif config.items_log is not None:
        raise ConfigError("got an items log, expected none: no run here retrieves, so there is no catalogue to change")
    graph = recommender_graph(recommender, with_plan(GraphConfig(), plan))
    if config.warm is not None:
        logger.info("%d segments are hot", warm(graph, kept_requests(read_log(config.warm))))
    if config.log is not None and plan.threads == 1:
        graph = timed(graph)
    executor: Executor = EXECUTORS.load(config.executor)(graph)
    if config.log is not None:
        log = RequestLogger(config.log, keep_requests=config.keep_requests, threads=plan.threads)
        executor = LoggedExecutor(executor, log)
    page = LazyPage(lambda: page_app(recommender, executor, gate)) if config.page and has_page() else None
    return make_app(executor, catalogue, gate, config.app, page)


def bind(host: str, port: int) -> socket.socket:
    """Take an address before anything is loaded; nobody can connect yet.

    Raises:
        ConfigError: it is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ConfigError(f"{host}:{port} cannot be served ({error}); give another --port or --host") from error
    return found


def run(app: FastAPI, address: socket.socket, drain_s: float, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is under way.

    Args:
        app: as :func:`open_server` makes it.
        address: as :func:`bind` gives it.
        drain_s: how long requests under way may go on after that.
        ready: is told once, in words.
    """
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=math.ceil(drain_s),
    )
    _Server(config, ready).run(sockets=[address])


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on a new connection which says nothing whole for too long."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._waiting = self.loop.call_later(HEADERS_S, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._waiting.cancel()
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        if self.cycle is None:
            self.transport.close()


class _Server(uvicorn.Server):
    """Says when it is ready, and ends in peace once it has drained."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets=sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            seconds = time.time() - psutil.Process().create_time()
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port} is ready after {seconds:.1f} s")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as a wish to end; the library would die of them after all."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()
