"""m6rec: one pretrained language model as an open-ended recommender.

Importing this loads no torch; the public names load on first use.
"""

from typing import TYPE_CHECKING, Any

from m6rec.errors import M6RecError

if TYPE_CHECKING:
    from m6rec.api import Recommender, load

__version__ = "0.1.0"
__all__ = ["M6RecError", "Recommender", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from m6rec.loading import load

        return load
    if name == "Recommender":
        from m6rec.api import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
