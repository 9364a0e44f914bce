"""One adapter out of several: the average of their weights. This module knows no method."""

from collections.abc import Sequence
from pathlib import Path

import torch

from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners.pool import find_adapter, saved_tuner


def average_adapters(
    backbone: Backbone, folders: Sequence[str | Path], out: str | Path, weights: Sequence[float] | None = None
) -> None:
    """Write the average of adapters as an adapter of its own: one to serve, or to start another task from.

    Every adapter is loaded as for use, so that all that must agree (method, base model, settings, shapes) does.

    Args:
        backbone: bare, the one that they were trained on; left as it was.
        folders: of the adapters, or of runs.
        out: folder to write.
        weights: one an adapter; default: all alike. They are made to sum to 1.

    Raises:
        TunerError: fewer than two, weights that do not fit, or adapters that do not fit each other.

    Source: Wortsman et al., Model soups (arXiv 2203.05482); Chronopoulou et al., AdapterSoup (arXiv 2302.07027).
    Differs: LoRA's two factors are averaged one by one, which is near the average of their products only for adapters
    that started alike.
    """
    shares = _shares(len(folders), weights)
    places = [find_adapter(Path(folder)) for folder in folders]
    bare = set(backbone.parameters())
    tuner = saved_tuner(places[0])
    tuned = tuner.attach(backbone)
    try:
        averages: dict[str, torch.Tensor] = {}
        for share, place in zip(shares, places, strict=True):
            tuner.load(place)
            own = {name: p for name, p in tuned.named_parameters() if p.requires_grad or p not in bare}
            averages = {name: averages.get(name, 0) + share * p.detach().float() for name, p in own.items()}
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(averages[name])
        tuner.save(Path(out))
    finally:
        tuner.detach()


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if count < 2:
        raise TunerError(f"got {count} adapters to average, expected two or more; name their folders")
    weights = [1.0] * count if weights is None else weights
    if len(weights) != count or min(weights) < 0 or sum(weights) <= 0:
        raise TunerError(
            f"got the weights {list(weights)} for {count} adapters, expected one for each and none negative; give these"
        )
    return [weight / sum(weights) for weight in weights]
