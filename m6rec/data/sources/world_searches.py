"""What the sample world's users type into the search field: the theme of the visit and the style they are after."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m6rec.data.sources.world_frame import SHOP, pick
from m6rec.data.sources.world_population import Population
from m6rec.data.sources.world_words import words


def queries(people: Population, rows: NDArray[np.int64], steps: NDArray[np.int64], seed: int) -> pa.Array:
    """Return the text of each search.

    Args:
        people: the block.
        rows: ``[Q]`` users in the block.
        steps: ``[Q]`` the choices that the searches lead to.
        seed: the world's seed.
    """
    rng = np.random.default_rng([seed, 4, people.first])
    themes = people.interests[rows, people.interest[rows, steps]].tolist()
    domains, styles = people.domain[rows, steps].tolist(), people.searched[rows, steps].tolist()
    return pa.array(
        [_query(theme, domain, style, rng) for theme, domain, style in zip(themes, domains, styles, strict=True)],
        pa.string(),
    )


def _query(theme: int, domain: int, style: int, rng: np.random.Generator) -> str:
    entry, how = words().themes[theme], pick(rng, words().styles[style].queries)
    if domain == SHOP:
        goods = pick(rng, (*entry.tools, *entry.extras, *entry.supplies))
        return pick(rng, (f"{how} {goods}", f"{goods} {how}", f"{how} things for {entry.hobby}"))
    return pick(
        rng, (f"{how} films about {entry.hobby}", f"{entry.genre.lower()} {how}", f"{how} {entry.hobby} series")
    )
