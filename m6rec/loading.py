"""Open whatever a folder holds: a run through torch, or an exported one without it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from m6rec.edge.folder import is_edge
from m6rec.errors import RunError

if TYPE_CHECKING:
    from m6rec.api import Recommender
    from m6rec.edge.recommender import EdgeRecommender


def load(run: str | Path, *rest: Any, **options: Any) -> "Recommender | EdgeRecommender":
    """Open a run as a recommender; an exported one needs no torch.

    Args:
        run: folder or Hub name, as :func:`m6rec.api.load` takes it, or an edge folder.
        rest: as :func:`m6rec.api.load`, or :class:`m6rec.edge.recommender.EdgeRecommender`, has them.
        options: likewise.

    Raises:
        RunError: no finished run, one of another version, or an engine for a run that is none of ONNX graphs.
    """
    if is_edge(Path(run)):
        from m6rec.edge.recommender import EdgeRecommender

        return EdgeRecommender(run, *rest, **options)
    if "engine" in options:
        raise RunError(f"{run} is no exported run, and no other has an engine to choose; export one: m6rec compress")
    from m6rec import api

    return api.load(run, *rest, **options)
