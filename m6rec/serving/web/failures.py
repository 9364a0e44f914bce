"""Which status code an error is, and what the answer says. Knows no route."""

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from m6rec.errors import (
    ConfigError,
    DataError,
    DeadlineError,
    ItemTakenError,
    ItemUnknownError,
    JournalError,
    M6RecError,
    OverloadedError,
    RunError,
    StageError,
)

logger = logging.getLogger(__name__)

# The first that fits counts, so that a child stands before its parent.
STATUS: Sequence[tuple[type[Exception], int, str]] = (
    (ItemTakenError, 409, "conflict"),
    (ItemUnknownError, 404, "not_found"),
    (DataError, 422, "request"),
    (ConfigError, 422, "request"),
    (RunError, 501, "not_served"),
    (OverloadedError, 503, "overloaded"),
    (DeadlineError, 504, "deadline"),
    (StageError, 500, "stage"),
    (JournalError, 507, "storage"),
)
WORDS = {400: "malformed", 401: "key", 404: "not_found", 405: "method", 408: "slow", 413: "size", 415: "content_type"}


def fault(status: int, kind: str, message: str, fields: Sequence[Any] = (), **headers: str) -> JSONResponse:
    """Return an answer that says what is wrong."""
    body = {"error": {"type": kind, "message": message, "fields": list(fields)}}
    return JSONResponse(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def failure(error: Exception) -> JSONResponse:
    """Return the answer to an error; one that nobody expected says nothing of the inside."""
    for kind, status, word in STATUS:
        if isinstance(error, kind):
            if isinstance(error, OverloadedError):
                return fault(status, word, str(error), retry_after=str(max(1, math.ceil(error.retry_after_s))))
            return fault(status, word, str(error))
    # Its words may hold the request's: where it happened is enough to find it.
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("unexpected %s\n%s", type(error).__name__, where)
    return fault(500, "internal", "something went wrong here; the server's log says where")


def install(app: FastAPI) -> None:
    """Have an app answer its errors so."""
    app.add_exception_handler(M6RecError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _known(_: Request, error: Exception) -> JSONResponse:
    return failure(error)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["allow"] = _allowed(request)
    # The framework has no words for a body at which the reader itself gave up.
    said = "got a body that cannot be read; is it nested too deeply?" if error.status_code == 400 else error.detail
    return fault(error.status_code, WORDS.get(error.status_code, "request"), str(said), **headers)


def _allowed(request: Request) -> str:
    """Return all methods of a path: each is a route of its own, and the router names the first one's."""
    template = getattr(request.scope.get("route"), "path_format", "")
    return ", ".join(sorted(method.upper() for method in request.app.openapi()["paths"].get(template, {})))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    for problem in error.errors():
        if problem["type"] == "json_invalid":
            where = f"{problem['ctx']['error']}, at character {problem['loc'][-1]}"
            return fault(400, "malformed", f"got a body that is no JSON ({where}), expected one JSON object")
    problems = [(_place(problem, error.body), problem["msg"]) for problem in error.errors()[:100]]
    places = {place for place, _ in problems}
    # What may be of several types is told of for each of them: the one that was meant is that which fits the deepest.
    inner = [pair for pair in problems if not any(place[: len(pair[0])] == pair[0] != place for place in places)]
    # Without what was sent: it may be long, and somebody's.
    fields = [{"field": ".".join(map(str, place)), "problem": said} for place, said in inner[:20]]
    told = "; ".join(f"{each['field']}: {each['problem']}" for each in fields[:3])
    return fault(422, "request", f"got a request that does not fit: {told}", fields)


def _place(problem: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """Return where a problem is, without the names of types that the library puts between."""
    first, *rest = problem["loc"]
    if first != "body":
        return (first, *rest)
    place, value = [first], body
    for number, part in enumerate(rest, 1):
        if isinstance(value, Mapping) and (part in value or (problem["type"] == "missing" and number == len(rest))):
            place, value = [*place, part], value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            place, value = [*place, part], value[part]
    return tuple(place)
