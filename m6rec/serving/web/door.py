"""What every request passes before it is looked at: a name, a key, a body of bearable size in bearable time.

Plain ASGI, so that nothing of a refused request is ever parsed. Knows no route and no recommender.
"""

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m6rec.serving.web.failures import failure, fault
from m6rec.serving.web.metrics import Metrics
from m6rec.serving.web.security import Gate

access = logging.getLogger("m6rec.access")
_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Accounts:
    """Gives each request an id, counts it, and logs one line of it: no body, no path's values, no address."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _SANE.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        begun, status = time.perf_counter(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        self.metrics.under_way.inc()
        try:
            await self.app(scope, receive, named)
        except Exception as error:  # noqa: BLE001 (the last one who could answer)
            if not status:
                await failure(error)(scope, receive, named)
        finally:
            self.metrics.under_way.dec()
            seconds = time.perf_counter() - begun
            self._note(name, scope, state, status or 499, seconds)

    def _note(self, name: str, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "") or "none"
        self.metrics.count(route, status, seconds, state.get("rung", ""))
        line = {"request": name, "method": scope["method"], "route": route, "status": status}
        told = {each: state[each] for each in ("key", "rung", "version") if state.get(each)}
        access.info("request", extra={"fields": {**line, "ms": round(seconds * 1000, 1), **told}})


class Keys:
    """Lets in who has a key: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.

    Args:
        app: what is behind.
        gate: the keys.
        guarded: beginnings of the paths that want one.
    """

    def __init__(self, app: ASGIApp, gate: Gate, guarded: Sequence[str] = ("/v1",)) -> None:
        self.app, self.gate, self.guarded = app, gate, tuple(guarded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith(self.guarded):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        key = self.gate.who(given)
        if key is None:
            told = "send a key of this server's: Authorization: Bearer KEY"
            return await fault(401, "key", told, www_authenticate="Bearer")(scope, receive, send)
        scope.setdefault("state", {})["key"] = key.name
        if wait := self.gate.wait_s(key):
            told = f"got more than {key.per_minute} requests a minute by this key; come again in {wait:.1f} s"
            return await fault(429, "rate", told, retry_after=str(math.ceil(wait)))(scope, receive, send)
        return await self.app(scope, receive, send)


class Bodies:
    """Reads a body before anybody waits for it: not too long, not too slow, JSON, and text that is text.

    Args:
        app: what is behind.
        max_bytes: longest body.
        timeout_s: how long it may take to arrive.
        guarded: beginnings of the paths that are so read.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float, guarded: Sequence[str] = ("/v1",)) -> None:
        self.app, self.max_bytes, self.timeout_s, self.guarded = app, max_bytes, timeout_s, tuple(guarded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith(self.guarded):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        told = headers.get("content-length", "0")
        if told.isdecimal() and int(told) > self.max_bytes:
            return await self._too_long()(scope, receive, send)
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._read(receive)
        except TimeoutError:
            slow = f"got no whole request within {self.timeout_s:g} s; send it faster"
            return await fault(408, "slow", slow, connection="close")(scope, receive, send)
        if body is None:
            return None  # gone in the middle: there is nobody to answer
        if len(body) > self.max_bytes:
            return await self._too_long()(scope, receive, send)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json":
            wrong = f"got content type {kind!r}, expected application/json"
            return await fault(415, "content_type", wrong)(scope, receive, send)
        if (problem := unreadable(body)) is not None:
            return await fault(400, "malformed", problem)(scope, receive, send)
        return await self.app(scope, _again(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, one byte past the limit at most; ``None`` = the client has left."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body") or len(body) > self.max_bytes:
                return bytes(body)

    def _too_long(self) -> Any:
        told = f"got a body of more than {self.max_bytes:,} bytes; send less at once"
        return fault(413, "size", told, connection="close")


def unreadable(body: bytes) -> str | None:
    """Return why a body is no text; ``None`` = it is.

    >>> unreadable(b'"a lamp"'), unreadable(b'"\\\\ud83d\\\\ude00"')
    (None, None)
    >>> unreadable(b'"caf\\xe9"')
    'got bytes that are no UTF-8 (at byte 4); encode the text as UTF-8'
    >>> unreadable(b'"\\\\ud83d alone"')
    'got half a character (a lone surrogate); send whole ones'
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"got bytes that are no UTF-8 (at byte {error.start}); encode the text as UTF-8"
    halves = re.sub(r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}", "", text)
    if re.search(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}", halves):
        return "got half a character (a lone surrogate); send whole ones"
    return None


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a way to receive a body that was read already, and then whatever comes next: that the client leaves."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
