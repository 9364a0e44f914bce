"""The words of the sample world's items: titles, descriptions, categories, prices. Knows no users."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.data.sources.world_frame import EXTRA, SERIES, SHOP, SUPPLY, pick
from m6rec.data.sources.world_words import Audience, Style, Theme, Words, words

VISIBLE = ("title", "brand", "category", "description", "price", "audience", "finish", "format", "length", "year")
"""The columns of the item table, in order; a field that an item lacks is null."""
_TIERS = {-1: 0.6, 0: 1.0, 1: 1.9}
_PACKS = ("Single Pack", "Pack of 3", "Pack of 6", "Value Pack")
_SIZES = ("Small", "Medium", "Large")
_MAKERS_PER_PAIR = 5


def title_case(text: str) -> str:
    """Return ``text`` as a title, hyphens and apostrophes left alone.

    >>> title_case("chef's knife")
    "Chef's Knife"
    """
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def describe(
    works: Mapping[str, NDArray[np.int64]], work: NDArray[np.int64], season: NDArray[np.int64], rng: np.random.Generator
) -> dict[str, list[Any]]:
    """Return the visible columns of all items.

    Args:
        works: latent columns, one row a work (a product, or a show with all its seasons).
        work: ``[num_items]`` which work an item belongs to, ascending.
        season: ``[num_items]`` 0 for the first or only one.
        rng: source of chance.
    """
    columns: dict[str, list[Any]] = {name: [] for name in VISIBLE}
    brands, studios = (_maker_names(words(), patterns, rng) for patterns in ("brand_patterns", "studio_patterns"))
    taken: set[str] = set()
    base: dict[str, Any] = {}
    for owner, part in zip(work.tolist(), season.tolist(), strict=True):
        latent = {name: int(column[owner]) for name, column in works.items()}
        if part == 0:
            names = brands if latent["domain"] == SHOP else studios
            base = _unique(latent, names[latent["maker"]], taken, rng)
        row = _season(base, part, rng) if latent["kind"] == SERIES else base
        for name in VISIBLE:
            columns[name].append(row.get(name))
    return columns


def _maker_names(vocabulary: Words, patterns: str, rng: np.random.Generator) -> list[str]:
    count = _MAKERS_PER_PAIR * ((len(vocabulary.themes) + 1) // 2)
    names: dict[str, None] = {}
    while len(names) < count:
        first, second = rng.choice(vocabulary.brand_names, 2, replace=False)
        names[pick(rng, getattr(vocabulary, patterns)).format(a=first, b=second)] = None
    return list(names)


def _unique(latent: Mapping[str, int], maker: str, taken: set[str], rng: np.random.Generator) -> dict[str, Any]:
    """Return a row whose title nobody else has; in a very large catalogue a number makes the difference."""
    for _ in range(8):
        row = _shop(latent, maker, rng) if latent["domain"] == SHOP else _video(latent, maker, rng)
        if row["title"] not in taken:
            break
    else:
        row["title"] += f" No. {len(taken)}"
    taken.add(row["title"])
    return row


def _latent_words(latent: Mapping[str, int]) -> tuple[Theme, Style, Audience]:
    vocabulary = words()
    theme, style = vocabulary.themes[latent["theme"]], vocabulary.styles[latent["style"]]
    return theme, style, vocabulary.audiences[latent["audience"]]


def _shop(latent: Mapping[str, int], brand: str, rng: np.random.Generator) -> dict[str, Any]:
    theme, style, audience = _latent_words(latent)
    supply = latent["kind"] == SUPPLY
    goods = theme.supplies if supply else theme.extras if latent["kind"] == EXTRA else theme.tools
    product, price = list(goods.items())[latent["product"]]
    finish = None if supply else pick(rng, style.finishes)
    look = "" if supply else f"{pick(rng, style.looks)}. "
    use = f"Goes with every {list(theme.tools)[latent['product']]}. " if latent["kind"] == EXTRA else ""
    return {
        "title": _supply_title(product, brand, style, audience, rng)
        if finish is None
        else _product_title(product, brand, finish, style, audience, rng),
        "brand": brand,
        "category": f"Shop > {theme.aisle}",
        "description": f"{look}{pick(rng, audience.shop)}. {use}".strip(),
        "price": _price(price * _TIERS[latent["tier"]] * float(np.exp(rng.normal(0.0, 0.12)))),
        "audience": audience.group,
        "finish": finish and finish.lower(),
    }


def _product_title(
    product: str, brand: str, finish: str, style: Style, audience: Audience, rng: np.random.Generator
) -> str:
    adjective, word, name = pick(rng, style.adjectives), pick(rng, audience.words), title_case(product)
    return pick(
        rng,
        (
            f"{brand} {adjective} {name}, {finish}",
            f"{adjective} {word} {name}",
            f"{brand} {word} {name} in {finish}",
            f"{word} {name}, {finish}, {pick(rng, _SIZES)}",
            f"{name} by {brand}, {adjective} {word} Line",
            f"{adjective} {name} in {finish}",
        ),
    )


def _supply_title(product: str, brand: str, style: Style, audience: Audience, rng: np.random.Generator) -> str:
    good, word, name, pack = pick(rng, style.goods), pick(rng, audience.words), title_case(product), pick(rng, _PACKS)
    return pick(
        rng,
        (
            f"{brand} {good} {name}, {pack}",
            f"{good} {word} {name}, {pack}",
            f"{brand} {word} {name}, {good} Quality, {pack}",
        ),
    )


def _price(value: float) -> float:
    """Return a price as shops write them: 4.49, 38.90, 250.00.

    >>> [_price(4.31), _price(38.2), _price(253.0)]
    [4.49, 38.9, 255.0]
    """
    if value < 10:
        return int(value * 2) / 2 + 0.49
    return int(value) + 0.9 if value < 100 else float(round(value / 5) * 5)


def _video(latent: Mapping[str, int], studio: str, rng: np.random.Generator) -> dict[str, Any]:
    theme, style, audience = _latent_words(latent)
    subject, tail = theme.subjects[latent["product"]], pick(rng, style.tails)
    kind = "series" if latent["kind"] == SERIES else pick(rng, ("film", "documentary", "short film"))
    minutes = {"series": 25, "film": 80, "documentary": 55, "short film": 12}[kind] + int(rng.integers(30))
    titles = (f"{subject}: {tail}", f"{tail} – {subject}", f"{subject}: {audience.cut}, {tail}")
    return {
        "title": pick(rng, titles),
        "brand": studio,
        "category": f"Video > {theme.genre}",
        "description": f"{pick(rng, style.moods)} {kind} about {pick(rng, theme.about)}, {pick(rng, style.places)}. "
        f"{pick(rng, audience.video)}.",
        "audience": audience.group,
        "format": kind,
        "length": f"{minutes} minutes",
        "year": str(1996 + int(rng.integers(26))),
    }


def _season(base: Mapping[str, Any], part: int, rng: np.random.Generator) -> dict[str, Any]:
    return {
        **base,
        "title": f"{base['title']}, Season {part + 1}",
        "length": f"{int(rng.integers(6, 13))} episodes of {base['length']}",
        "year": str(int(base["year"]) + part),
    }


def sentences(parts: Iterator[str]) -> str:
    """Join clauses to sentences: each starts with a capital and ends with a full stop.

    >>> sentences(iter(["it is fine", "I like it!"]))
    'It is fine. I like it!'
    """
    return " ".join(part[:1].upper() + part[1:] + ("" if part[-1:] in ".!?" else ".") for part in parts if part)
