"""The server: routes behind a door, around an executor that starts and drains with it. Knows no model and no socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI

from m6rec.errors import ConfigError
from m6rec.serving.executors.base import Executor
from m6rec.serving.web.door import Accounts, Bodies, Keys
from m6rec.serving.web.failures import install
from m6rec.serving.web.metrics import Metrics
from m6rec.serving.web.page.lazy import Beside, LazyPage
from m6rec.serving.web.routes import Counter, Desk, asking, catalogue_routes, watching
from m6rec.serving.web.security import Gate

if TYPE_CHECKING:
    from m6rec.serving.catalogue import ServedCatalogue

WRITING = frozenset({"explain", "create", "chat", "generate", "score"})


@dataclass(frozen=True)
class AppConfig:
    """Settings of the server; they change which requests are refused, never what an answer says.

    Raises:
        ConfigError: lists every impossible value at once.
    """

    max_body_bytes: int = 4 << 20
    """Longest body of a request."""
    body_timeout_s: float = 10.0
    """How long a body may take to arrive."""
    deadline_ms: float = 1000.0
    """How long a request may take that does not say so itself."""
    writing_deadline_ms: float = 30_000.0
    """The same for requests that have text written or read by the language model."""
    drain_s: float = 30.0
    """How long requests under way may go on once the server is told to stop."""
    max_waiting_changes: int = 256
    """Changes of the catalogue that may wait for their turn."""

    def __post_init__(self) -> None:
        problems = [f"{name}: got {value}, expected more than 0" for name, value in vars(self).items() if not value > 0]
        if problems:
            raise ConfigError("\n".join(problems))

    def limit_ms(self, kind: str) -> float:
        """Return how long a kind of request may take."""
        return self.writing_deadline_ms if kind in WRITING else self.deadline_ms


def make_app(
    executor: Executor,
    catalogue: "ServedCatalogue | None" = None,
    gate: Gate | None = None,
    config: AppConfig = AppConfig(),
    page: LazyPage | None = None,
) -> FastAPI:
    """Return the server as an ASGI app.

    Args:
        executor: not started; it starts and drains with the app.
        catalogue: of the runs that the executor serves; ``None`` = it cannot change.
        gate: lets in who has a key; ``None`` = everybody.
        config: limits.
        page: to look at; ``None`` = there is none.
    """
    metrics = Metrics(executor.report, None if catalogue is None else catalogue.__len__)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await executor.start()
        try:
            yield
        finally:
            if page is not None:
                await page.close()
            await executor.drain(config.drain_s)
            if catalogue is not None:
                catalogue.close()

    app = FastAPI(
        title="m6rec",
        version=version("m6rec"),
        summary="One pretrained language model as an open-ended recommender.",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    install(app)
    app.include_router(asking(Desk(executor, config.limit_ms)))
    app.include_router(catalogue_routes(Counter(catalogue, config.max_waiting_changes)))
    app.include_router(watching(executor, metrics))
    # The last one added is the first one met.
    if page is not None:
        app.add_middleware(Beside, page)
    app.add_middleware(Bodies, config.max_body_bytes, config.body_timeout_s)
    if gate is not None:
        app.add_middleware(Keys, gate)
    app.add_middleware(Accounts, metrics)
    return app
