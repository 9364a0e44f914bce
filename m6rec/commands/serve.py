"""The commands around a server: serve, and keys for who may ask. Heavy imports wait for their command."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from m6rec.commands.screen import console
from m6rec.errors import MissingExtraError

app = typer.Typer(rich_markup_mode=None)


@app.command()
def serve(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or Hub names: one that retrieves, one that ranks...")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 = every one of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any that is free.")] = 8000,
    executor: Annotated[str, typer.Option(help="local, or ray: the same graph on Ray Serve.")] = "local",
    index: Annotated[str, typer.Option(help="Name on the indexes shelf.")] = "exact",
    plan: Annotated[Path | None, typer.Option(help="What m6rec plan has written.")] = None,
    items_log: Annotated[
        Path | None, typer.Option(help="Folder that keeps changes of the catalogue for the next start.")
    ] = None,
    api_keys: Annotated[Path | None, typer.Option(help="Only who has a key may ask: m6rec api-key FILE NAME.")] = None,
    log: Annotated[Path | None, typer.Option(help="Log requests to this file, for m6rec plan.")] = None,
    keep_requests: Annotated[
        bool, typer.Option("--keep-requests", help="Log the requests themselves as well; they are personal.")
    ] = False,
    warm: Annotated[
        Path | None, typer.Option(help="A log that keeps requests: hold what ranking them asks for most in memory.")
    ] = None,
    page: Annotated[bool, typer.Option(help="A page to look at, at /page; needs the extra `page`.")] = True,
    deadline_ms: Annotated[float, typer.Option(help="How long a request may take that does not say so.")] = 1000.0,
) -> None:
    """Answer over HTTP until told to stop: m6rec serve runs/shop runs/shop-ranker --items-log items --port 8000."""
    with ExitStack() as loading:
        loading.enter_context(_to_stay())
        try:
            from m6rec.serving.server import ServerConfig, bind, open_server, run
        except ModuleNotFoundError as error:
            if error.name not in ("fastapi", "prometheus_client", "uvicorn"):
                raise
            raise MissingExtraError(error.name, "serve") from error
        from m6rec.serving.web.app import AppConfig
        from m6rec.serving.web.logs import log_json

        limits = AppConfig(deadline_ms=deadline_ms)
        chosen = ServerConfig(
            tuple(runs), executor, index, plan, items_log, api_keys, log, keep_requests, warm, page, app=limits
        )
        with bind(host, port) as address:
            served = open_server(chosen)
            log_json()
            loading.close()
            run(served, address, limits.drain_s, console.print)


@app.command(name="api-key")
def api_key(
    file: Annotated[Path, typer.Argument(help="The key file; made where it is missing.")],
    name: Annotated[str, typer.Argument(help="Whose key, in a word.")],
    per_minute: Annotated[int, typer.Option(min=1, help="Requests that it may make.")] = 600,
) -> None:
    """Make a key and print it, once: the file keeps its hash alone."""
    from m6rec.serving.web.security import new_key

    console.print(new_key(file, name, per_minute))


@contextmanager
def _to_stay() -> Iterator[None]:
    """Look for no garbage among what is loaded in here, neither now nor later: it stays as long as the process.

    A collection walks all objects that there are, and a start makes a million: a fifth of its CPU time went into that.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
