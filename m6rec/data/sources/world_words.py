"""The sample world's vocabulary, read from ``world.yaml``. Knows no items, no users and no chance."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Style:
    """How a thing looks and feels; the taste axis that a user holds per interest, in shop and video alike."""

    name: str
    adjectives: tuple[str, ...]
    goods: tuple[str, ...]
    finishes: tuple[str, ...]
    looks: tuple[str, ...]
    tails: tuple[str, ...]
    moods: tuple[str, ...]
    places: tuple[str, ...]
    queries: tuple[str, ...]
    like: tuple[str, ...]
    dislike: tuple[str, ...]
    want: str


@dataclass(frozen=True)
class Audience:
    """Whom a thing is made for; the taste axis that a user holds for everything."""

    name: str
    group: str
    words: tuple[str, ...]
    cut: str
    shop: tuple[str, ...]
    video: tuple[str, ...]
    like: tuple[str, ...]
    dislike: tuple[str, ...]
    want: str


@dataclass(frozen=True)
class Theme:
    """What a thing is about; shop and video site share the themes.

    ``extras[i]`` goes with ``tools[i]``; ``supplies`` are used up. ``peak`` is the liveliest month in the north and
    ``swing`` by how much (in log odds).
    """

    name: str
    hobby: str
    habit: str
    aisle: str
    genre: str
    peak: int
    swing: float
    climate: str
    near: tuple[str, ...]
    tools: dict[str, float]
    extras: dict[str, float]
    supplies: dict[str, float]
    subjects: tuple[str, ...]
    about: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a user lives. In the south the seasons are turned round."""

    name: str
    climate: str
    south: bool = False


@dataclass(frozen=True)
class Words:
    """Everything that can be said in the sample world."""

    styles: tuple[Style, ...]
    audiences: tuple[Audience, ...]
    themes: tuple[Theme, ...]
    places: tuple[Place, ...]
    brand_names: tuple[str, ...]
    brand_patterns: tuple[str, ...]
    studio_patterns: tuple[str, ...]


@cache
def words() -> Words:
    """Return the vocabulary; read once."""
    text = files(__package__).joinpath("world.yaml").read_text(encoding="utf-8")
    tree = {key: _frozen(value) for key, value in yaml.safe_load(text).items()}
    return Words(
        styles=tuple(Style(name=name, **fields) for name, fields in tree.pop("styles").items()),
        audiences=tuple(Audience(name=name, **fields) for name, fields in tree.pop("audiences").items()),
        themes=tuple(Theme(name=name, **fields) for name, fields in tree.pop("themes").items()),
        places=tuple(Place(**fields) for fields in tree.pop("places")),
        **tree,
    )


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
