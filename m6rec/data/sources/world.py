"""The seeded sample world: a shop and a video site that share their users; needs no network.

It knows its own true probabilities (``World.oracle``), so a report can show the ceiling beside every model. This module
only puts the parts together; the words, items, users, choices and their oracle have a module each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m6rec.data.sources.world_behaviour import SEARCH, VERBS, Log, simulate
from m6rec.data.sources.world_catalogue import Catalogue, build_catalogue
from m6rec.data.sources.world_choice import Choice
from m6rec.data.sources.world_dialogues import dialogues
from m6rec.data.sources.world_oracle import Oracle
from m6rec.data.sources.world_population import BLOCK, Population, build_population, user_keys, user_table
from m6rec.data.sources.world_reviews import reviews
from m6rec.data.sources.world_searches import queries
from m6rec.errors import ConfigError

_KEPT_BLOCKS = 4


@dataclass(frozen=True)
class WorldConfig:
    """Settings of the sample world."""

    path: str = ""
    """Not used: the world is made, not read."""
    users: int = 3_000
    """Number of users, about 24 events each, searches included (420000 users make 10 M events). Changes results."""
    items: int = 2_400
    """Number of items, shop and video together; at least 300. Changes results."""
    dialogues: int = 600
    """Number of recommendation dialogues. Changes results."""
    seed: int = 0
    """The world's seed: the same seed is the same world. Changes results."""

    def __post_init__(self) -> None:
        for name, least in (("users", 1), ("items", 300), ("dialogues", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected at least {least}")


class World:
    """A made-up shop and video site with true probabilities, for demos and tests."""

    Config = WorldConfig
    name = "world"
    licence = "Apache-2.0 (made by m6rec)"
    domain = "world"

    def __init__(self, config: WorldConfig = WorldConfig()) -> None:
        self.config = config
        # A default-sized world fits; a large one is simulated again for each table, in bounded memory.
        self._block = lru_cache(maxsize=_KEPT_BLOCKS)(self._simulate)

    @cached_property
    def catalogue(self) -> Catalogue:
        """All items, latent side included."""
        return build_catalogue(self.config.items, self.config.seed)

    @cached_property
    def _choice(self) -> Choice:
        return Choice(self.catalogue)

    def oracle(self) -> Oracle:
        """Return the true probabilities of this world."""
        return Oracle(self._choice, self.config.users, self._block)

    def events(self) -> Iterator[pa.Table]:
        """Yield searches and choices, user by user in time order; one row an item that a user chose.

        The verb says how far it went (click, cart, purchase; click, watch), so no item comes twice to a user.
        """
        for log in self._logs():
            yield self._event_table(log)

    def items(self) -> Iterator[pa.Table]:
        """Yield the one table of items."""
        yield self.catalogue.table()

    def users(self) -> Iterator[pa.Table]:
        """Yield users with place, age and the month they joined."""
        for first in self._firsts():
            yield pa.table(user_table(self._people(first)))

    def reviews(self) -> Iterator[pa.Table]:
        """Yield reviews; ``reason`` names the attributes that the user liked or disliked."""
        for log in self._logs():
            yield reviews(log, self.catalogue, self.config.seed)

    def conversations(self) -> Iterator[dict[str, Any]]:
        """Yield dialogues between a user who is not in the log and a system that knows the catalogue."""
        yield from dialogues(self.catalogue, self.config.dialogues, self.config.seed)

    def impressions(self) -> Iterator[pa.Table]:
        """Yield strips of suggestions, item by item, with label 1 where clicked."""
        for log in self._logs():
            yield pa.table(
                {
                    "user": self._users(log, log.shown_user),
                    "item": self._items(log.shown_item),
                    "time": log.shown_times(),
                    "label": log.shown_label.astype(np.int8),
                }
            )

    def _firsts(self) -> range:
        return range(0, self.config.users, BLOCK)

    def _logs(self) -> Iterator[Log]:
        return map(self._block, self._firsts())

    def _people(self, first: int) -> Population:
        return build_population(first, min(BLOCK, self.config.users - first), self.config.seed)

    def _simulate(self, first: int) -> Log:
        return simulate(self._choice, self._people(first), self.config.seed)

    def _users(self, log: Log, rows: NDArray[np.int64]) -> pa.Array:
        keys = pa.array(user_keys(log.people.first + np.arange(len(log.people))))
        return keys.take(pa.array(rows))

    @cached_property
    def _item_keys(self) -> pa.Array:
        return pa.array(self.catalogue.keys.tolist())

    def _items(self, rows: NDArray[np.int64]) -> pa.Array:
        return self._item_keys.take(pa.array(rows))

    def _event_table(self, log: Log) -> pa.Table:
        """Put each search right before the choice that it led to."""
        searched = np.flatnonzero(log.people.searched[log.user, log.step] >= 0)
        users, steps = log.user[searched], log.step[searched]
        nothing = pa.nulls(len(searched), pa.string())
        columns = {
            "user": [self._users(log, users), self._users(log, log.user)],
            "item": [nothing, self._items(log.item)],
            "time": [pa.array(log.people.search_times[users, steps]), pa.array(log.times())],
            "verb": [_verbs(np.full(len(searched), SEARCH)), _verbs(log.verb)],
            "query": [queries(log.people, users, steps, self.config.seed), pa.nulls(len(log.item), pa.string())],
        }
        # Searches stand first, so a stable sort puts each right before its choice.
        order = np.argsort(np.concatenate([searched, np.arange(len(log.item))]), kind="stable")
        return pa.table({name: pa.concat_arrays(parts) for name, parts in columns.items()}).take(order)


def _verbs(codes: NDArray[np.int64]) -> pa.Array:
    return pa.array(VERBS).take(pa.array(codes))
