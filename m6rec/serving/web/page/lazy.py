"""Where the page hangs in the server: loaded when it is first looked at, so that a start does not wait for it.

Knows no widget and no model.
"""

import asyncio
from collections.abc import Callable

from fastapi import FastAPI
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/page"


class LazyPage:
    """An ASGI app that comes to life with its first request.

    Args:
        open_page: returns the app; may take seconds.
    """

    def __init__(self, open_page: Callable[[], FastAPI]) -> None:
        self._open_page, self._lock = open_page, asyncio.Lock()
        self._app: FastAPI | None = None
        self._living: asyncio.Task[None] | None = None
        self._end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        async with self._lock:
            if self._app is None:
                self._app = await self._begin()
        await self._app(scope, receive, send)

    async def close(self) -> None:
        """End what the page has begun."""
        self._end.set()
        if self._living is not None:
            await self._living

    async def _begin(self) -> FastAPI:
        app, begun = await asyncio.to_thread(self._open_page), asyncio.Event()

        async def live() -> None:
            # In a task of its own: a lifespan has to end where it began.
            async with app.router.lifespan_context(app):
                begun.set()
                await self._end.wait()

        self._living = asyncio.create_task(live())
        await begun.wait()
        return app


class Beside:
    """Sends requests for the page there, and all others on.

    Args:
        app: for all others.
        page: for those below :data:`PATH`.
    """

    def __init__(self, app: ASGIApp, page: LazyPage) -> None:
        self.app, self.page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path == "/":
            return await RedirectResponse(PATH)(scope, receive, send)
        there = scope["type"] == "http" and (path == PATH or path.startswith(f"{PATH}/"))
        return await (self.page if there else self.app)(scope, receive, send)
