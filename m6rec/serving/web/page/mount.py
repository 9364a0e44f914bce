"""The page as an app of its own. Knows how widgets become one, not what they show."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

from fastapi import FastAPI

from m6rec.api import Recommender
from m6rec.serving.executors.base import Executor
from m6rec.serving.web.page.lazy import PATH
from m6rec.serving.web.security import Gate

# A disc in the page's colour.
ICON = (
    '<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns=%27http://www.w3.org/2000/svg%27 viewBox=%270 0 8 8%27%3E'
    '%3Ccircle cx=%274%27 cy=%274%27 r=%274%27 fill=%27%231f6f5c%27/%3E%3C/svg%3E">'
)


def has_page() -> bool:
    """Whether the extra for the page is installed."""
    return find_spec("gradio") is not None


def page_app(recommender: Recommender, executor: Executor, gate: Gate | None = None) -> FastAPI:
    """Return the page; where there are keys, the name and the key of one open it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    from m6rec.serving.web.page.blocks import STYLE, Page, theme

    page = Page(recommender, executor)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await page.choices.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    auth = None if gate is None else lambda name, key: (found := gate.who(key)) is not None and found.name == name
    return gradio.mount_gradio_app(
        app,
        page.build(),
        PATH,
        footer_links=[],
        run_history=False,
        auth=auth,
        theme=theme(),
        css_paths=[STYLE],
        head=ICON,
        ssr_mode=False,
    )
