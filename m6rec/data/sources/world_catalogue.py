"""The sample world's items: what there is, when it comes out, how much it draws, and what goes with what.

Every item has a latent side (theme, style, audience, price tier) and words that tell of it in many ways
(``world_titles``). Knows no users.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m6rec.data.sources.world_frame import DAY, END, EXTRA, SERIES, SHOP, SINGLE, START, SUPPLY, TOOL, VIDEO
from m6rec.data.sources.world_titles import describe
from m6rec.data.sources.world_words import Words, words

_LATE_SHARE = 0.45
_NEAR_SHARE = 0.3


@dataclass(frozen=True)
class Catalogue:
    """All items as arrays of length ``num_items``.

    Args:
        keys: the shop's and the site's own ids.
        domain: 0 shop, 1 video.
        kind: tool, extra, supply, single film or series.
        product: which of the theme's tools (extras, supplies); for videos which subject.
        theme, second_theme, style, audience: indices into the vocabulary; most items have one theme.
        tier: -1 cheap, 0 middle, 1 dear; 0 for videos.
        maker: brand or studio.
        log_popularity: how strongly an item draws whoever looks at its shelf.
        release: Unix seconds; 0 for what was always there.
        prequel: the season before this one, or -1.
        texts: the visible columns.
    """

    keys: NDArray[np.str_]
    domain: NDArray[np.int64]
    kind: NDArray[np.int64]
    product: NDArray[np.int64]
    theme: NDArray[np.int64]
    second_theme: NDArray[np.int64]
    style: NDArray[np.int64]
    audience: NDArray[np.int64]
    tier: NDArray[np.int64]
    maker: NDArray[np.int64]
    log_popularity: NDArray[np.float32]
    release: NDArray[np.int64]
    prequel: NDArray[np.int64]
    texts: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.keys)

    def table(self) -> pa.Table:
        """Return the items as ``Source.items`` gives them."""
        columns = {"item": pa.array(self.keys.tolist(), pa.string())}
        for name, values in self.texts.items():
            columns[name] = pa.array(values, pa.float32() if name == "price" else pa.string())
        return pa.table(columns)


def build_catalogue(num_items: int, seed: int) -> Catalogue:
    """Return ``num_items`` items, always the same for a seed; shop and video share them about evenly."""
    rng = np.random.default_rng([seed, 0])
    works = _works(num_items, words(), rng)
    ends = np.cumsum(works["seasons"])
    work = np.repeat(np.arange(num_items), works["seasons"])[:num_items]
    season = np.arange(num_items) - (ends - works["seasons"])[work]
    latent = {name: column[work] for name, column in works.items() if name != "seasons"}
    number = np.arange(num_items)
    popularity = rng.normal(0.0, 1.1, num_items)[work] + rng.normal(0.0, 0.3, num_items) - 0.2 * season
    return Catalogue(
        keys=np.char.add(np.where(latent["domain"] == SHOP, "S", "V"), np.char.zfill((number + 1).astype(str), 5)),
        log_popularity=popularity.astype(np.float32),
        release=_releases(season, ends[work] - number, rng),
        prequel=np.where(season > 0, number - 1, -1),
        texts=describe(works, work, season, np.random.default_rng([seed, 1])),
        **latent,
    )


def _works(count: int, vocabulary: Words, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Draw products and shows (a show owns all its seasons)."""
    themes = vocabulary.themes
    theme = rng.integers(len(themes), size=count)
    names = [entry.name for entry in themes]
    near = np.array([[names.index(name) for name in entry.near] for entry in themes])
    second = near[theme, rng.integers(2, size=count)]
    shop = rng.random(count) < 0.6
    kind = np.where(shop, rng.choice((TOOL, EXTRA, SUPPLY), size=count, p=(0.4, 0.36, 0.24)), SINGLE)
    seasons = np.where(shop, 1, rng.choice((1, 2, 3, 4), size=count, p=(0.78, 0.1, 0.07, 0.05)))
    kind = np.where(seasons > 1, SERIES, kind)
    choices = np.array([4, 4, 3, 7, 7])[kind]
    style = rng.integers(len(vocabulary.styles), size=count)
    return {
        "domain": np.where(shop, SHOP, VIDEO),
        "kind": kind,
        "product": (rng.random(count) * choices).astype(np.int64),
        "theme": theme,
        "second_theme": np.where(rng.random(count) < _NEAR_SHARE, second, theme),
        "style": style,
        "audience": rng.integers(len(vocabulary.audiences), size=count),
        "tier": np.where(shop, rng.integers(-1, 2, size=count), 0),
        "maker": _makers(theme, style, vocabulary, rng),
        "seasons": seasons,
    }


def _makers(
    theme: NDArray[np.int64], style: NDArray[np.int64], vocabulary: Words, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Give each work one of its theme's five makers, more often one whose house style fits."""
    house_style = rng.integers(len(vocabulary.styles), size=(len(vocabulary.themes), 5))
    fit = np.where(house_style[theme] == style[:, None], 5.0, 1.0).cumsum(axis=1)
    choice = (fit < rng.random((len(theme), 1)) * fit[:, -1:]).sum(axis=1)
    # A maker serves two themes: the makers of themes 2n and 2n + 1 share their names.
    return (theme // 2) * 5 + choice


def _releases(season: NDArray[np.int64], remaining: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return release times; of a show that is still running, the last season comes out within the two years."""
    count = len(season)
    late = rng.random(count) < np.where((season > 0) & (remaining == 1), 0.8, _LATE_SHARE)
    # Seasons before the last are old, so that a later one never comes first.
    late &= remaining == 1
    when = START + ((END - START) * rng.random(count) ** 0.5).astype(np.int64)
    return np.where(late, when // DAY * DAY, 0)
