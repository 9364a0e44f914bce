"""The addresses of the server: each reads a request, asks the executor, and shows the answer.

Knows the executor's Protocol and the catalogue; no model and no key.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from m6rec.errors import DeadlineError, ItemUnknownError, OverloadedError, RunError
from m6rec.serving.executors.base import Executor
from m6rec.serving.web import schemas as wire
from m6rec.serving.web.failures import failure
from m6rec.serving.web.metrics import Metrics

if TYPE_CHECKING:
    from m6rec.serving.catalogue import ServedCatalogue

# What a request may take beyond its own time before the server no longer believes the executor.
GRACE_S = 5.0
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.FaultOut, "description": told}
    for status, told in (
        (400, "No JSON, or no UTF-8."),
        (401, "No key, or an unknown one."),
        (408, "The body came too slowly."),
        (413, "The body is too long."),
        (415, "The body is no JSON by its content type."),
        (422, "The request cannot be read; `fields` says where."),
        (429, "Too many requests by this key."),
        (500, "A stage failed."),
        (501, "No run here does this."),
        (503, "Overloaded; `Retry-After` says when to come again."),
        (504, "Not answered within its time."),
    )
}
ITEM_FAULTS: dict[int | str, dict[str, Any]] = {
    404: {"model": wire.FaultOut, "description": "No such item is on offer."},
    409: {"model": wire.FaultOut, "description": "An item has this id already."},
    507: {"model": wire.FaultOut, "description": "The disk is full; nothing was changed."},
}
EVENTS = "`piece` events with `text`, then one `answer` (or `error`) event."
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "object", "description": EVENTS}}}}
}
UNBUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}
ItemId = Annotated[wire.Key, Path(examples=["teapot-7"])]


class Desk:
    """Asks an executor for what requests want.

    Args:
        executor: runs the graph.
        deadline_ms: returns the time that a kind of request has where it does not say.
    """

    def __init__(self, executor: Executor, deadline_ms: Callable[[str], float]) -> None:
        self.executor, self.deadline_ms = executor, deadline_ms

    async def ask(self, kind: str, body: wire.Timed, request: Request) -> dict[str, Any]:
        """Return the answer to a request, unless its client leaves."""
        asked, limit_ms = self._read(kind, body)
        answer = await _in_time(request, self.executor.submit(asked, deadline_ms=limit_ms, kind=kind), limit_ms)
        _note(request, answer)
        return answer

    async def stream(self, kind: str, body: wire.Timed, request: Request) -> Response:
        """Return an answer as it is written; what goes wrong before the first piece is an ordinary failure."""
        asked, limit_ms = self._read(kind, body)
        pieces = self.executor.stream(asked, deadline_ms=limit_ms, kind=kind)
        first = await _in_time(request, anext(pieces), limit_ms)
        return StreamingResponse(_events(first, pieces, request), media_type="text/event-stream", headers=UNBUFFERED)

    def _read(self, kind: str, body: wire.Timed) -> tuple[dict[str, Any], float]:
        if kind not in self.executor.graph.kinds:
            known = ", ".join(sorted(self.executor.graph.kinds))
            raise RunError(f"no run here does {kind!r}; the runs that are served do: {known}")
        asked = body.model_dump(exclude_unset=True, exclude={"deadline_ms", "stream"})
        return asked, body.deadline_ms or self.deadline_ms(kind)


async def _in_time(request: Request, work: Awaitable[Any], limit_ms: float) -> Any:
    """Return what ``work`` gives; stop it when the client leaves, or when the executor forgets the time."""
    working, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, left}, timeout=limit_ms / 1000 + GRACE_S, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        if left.done():
            raise HTTPException(499, "the client has left")
        raise DeadlineError(limit_ms)
    finally:
        working.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _note(request: Request, answer: Mapping[str, Any]) -> None:
    """Tell the log which rung made an answer."""
    request.state.rung, request.state.version = str(answer.get("rung", "")), str(answer.get("version", ""))


async def _events(first: str | dict[str, Any], rest: AsyncIterator[Any], request: Request) -> AsyncIterator[str]:
    """Yield an answer as server-sent events; whoever stops listening stops the writing."""
    piece: str | dict[str, Any] = first
    try:
        while True:
            if isinstance(piece, dict):
                _note(request, piece)
                yield _event("answer", piece)
                return
            yield _event("piece", {"text": piece})
            piece = await anext(rest)
    except Exception as error:  # noqa: BLE001 (the status is sent; the stream itself has to say it)
        yield _event("error", json.loads(bytes(failure(error).body)))
    finally:
        if isinstance(rest, AsyncGenerator):
            await rest.aclose()


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def asking(desk: Desk) -> APIRouter:
    """Return the routes that answer from the models."""
    router = APIRouter(prefix="/v1", responses=FAULTS, tags=["requests"])

    @router.post("/recommend", response_model=wire.ItemsOut)
    async def recommend(body: wire.RecommendIn, request: Request) -> Any:
        """Return the best items for a history: retrieved, filtered, ranked, and if wanted diversified and explained."""
        return await desk.ask("recommend", body, request)

    @router.post("/retrieve", response_model=wire.ItemsOut)
    async def retrieve(body: wire.RetrieveIn, request: Request) -> Any:
        """Return the nearest items of the whole catalogue."""
        return await desk.ask("retrieve", body, request)

    @router.post("/rank", response_model=wire.ItemsOut)
    async def rank(body: wire.RankIn, request: Request) -> Any:
        """Return candidates in the ranker's order."""
        once = {json.dumps(each, sort_keys=True): each for each in body.candidates}
        return await desk.ask("rank", body.model_copy(update={"candidates": list(once.values())}), request)

    @router.post("/score", response_model=wire.ScoresOut)
    async def score(body: wire.ScoreIn, request: Request) -> Any:
        """Return how likely the language model finds events in words."""
        return await desk.ask("score", body, request)

    @router.post("/explain", response_model=wire.ExplanationOut)
    async def explain(body: wire.ExplainIn, request: Request) -> Any:
        """Return why an item suits a user, and the events that this rests on."""
        return await desk.ask("explain", body, request)

    @router.post("/create", response_model=wire.CreationsOut)
    async def create(body: wire.CreateIn, request: Request) -> Any:
        """Return what could be made for a user or a group."""
        return await desk.ask("create", body, request)

    @router.post("/chat", response_model=wire.ReplyOut, responses=STREAMED)
    async def chat(body: wire.ChatIn, request: Request) -> Any:
        """Return what to say next in a dialogue."""
        return await (desk.stream if body.stream else desk.ask)("chat", body, request)

    @router.post("/generate", response_model=wire.TextsOut, responses=STREAMED)
    async def generate(body: wire.GenerateIn, request: Request) -> Any:
        """Return texts with their blanks filled; only a single text without a blank comes in pieces."""
        return await (desk.stream if body.stream else desk.ask)("generate", body, request)

    return router


class Counter:
    """Where items are handed in: so many may wait, and each waits for the disk.

    Args:
        catalogue: ``None`` = the runs here have none that can change.
        most: changes that may wait.
    """

    def __init__(self, catalogue: "ServedCatalogue | None", most: int) -> None:
        self._catalogue, self.most, self._waiting = catalogue, most, 0

    @property
    def catalogue(self) -> "ServedCatalogue":
        """The catalogue.

        Raises:
            RunError: there is none.
        """
        if self._catalogue is None:
            raise RunError("no run here retrieves, so there is no catalogue to change; serve a retrieval run")
        return self._catalogue

    async def hand_in(self, change: Callable[[Any], None], what: Sequence[Any]) -> dict[str, int]:
        """Make a change; a client that leaves does not undo it."""
        catalogue = self.catalogue
        if self._waiting >= self.most:
            raise OverloadedError(f"{self._waiting} changes of the catalogue wait", 1.0)
        self._waiting += 1
        try:
            await asyncio.shield(asyncio.to_thread(change, what))
        finally:
            self._waiting -= 1
        return {"items": len(catalogue)}


def catalogue_routes(counter: Counter) -> APIRouter:
    """Return the routes that show and change the catalogue."""
    router = APIRouter(prefix="/v1/items", responses={**FAULTS, **ITEM_FAULTS}, tags=["catalogue"])

    @router.post("", status_code=201, response_model=wire.CatalogueOut)
    async def add(body: wire.ItemsIn) -> Any:
        """Offer new items: once this is answered they are on the disk, and the next request finds them."""
        return await counter.hand_in(counter.catalogue.add, [item.model_dump() for item in body.items])

    @router.get("/{item_id:path}", response_model=wire.ItemFields)
    async def get(item_id: ItemId) -> Any:
        """Return the fields of an item."""
        if (item := counter.catalogue.get(item_id)) is None:
            raise ItemUnknownError(f"got the item id {item_id!r}, which is not on offer")
        return item

    @router.put("/{item_id:path}", response_model=wire.CatalogueOut)
    async def change(item_id: ItemId, body: wire.ItemFields) -> Any:
        """Give an item other fields, all at once; what was learnt of it stays."""
        return await counter.hand_in(counter.catalogue.change, [{**body.model_dump(), "id": item_id}])

    @router.delete("/{item_id:path}", response_model=wire.CatalogueOut)
    async def remove(item_id: ItemId) -> Any:
        """Stop offering an item."""
        return await counter.hand_in(counter.catalogue.remove, [item_id])

    return router


def watching(executor: Executor, metrics: Metrics) -> APIRouter:
    """Return the routes for those who run the server."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "alive"}

    @router.get("/readyz", responses={503: {"description": "Not yet, or no more."}})
    async def readyz() -> Response:
        """Say whether requests are taken."""
        report = executor.report()
        ready = bool(report.get("ready"))
        return JSONResponse({"ready": ready, "version": report.get("version", "")}, 200 if ready else 503)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def figures() -> Response:
        """Return figures in Prometheus' format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
