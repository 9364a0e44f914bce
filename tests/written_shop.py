"""A little shop whose users say why: reviews follow from the goods' fields, searches from what is bought next."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

COLOURS, NOUNS, GUESTS = ["red", "blue", "green", "warm"], ["shirt", "shoes", "lamp"], ["users", "winter", "summer"]
START = 1_600_000_000


@dataclass(frozen=True)
class WrittenConfig:
    users: int = 24
    seed: int = 0


class WrittenShop:
    """A source of 12 goods; every purchase is reviewed with the good's colour and the guests that it is for."""

    name, licence, domain = "written", "Apache-2.0", "world"
    Config = WrittenConfig

    def __init__(self, config: WrittenConfig) -> None:
        self.config = config
        rng = np.random.default_rng(config.seed)
        self._events: list[dict[str, Any]] = []
        self._reviews: list[dict[str, Any]] = []
        for user in range(config.users):
            for step in range(int(rng.integers(4, 8))):
                good, time = int(rng.integers(12)), START + 10_000 * step + user
                common = {"user": f"u{user:02d}", "time": time}
                if rng.random() < 0.4:
                    query = f"{NOUNS[good % 3]} for {GUESTS[good % 3]}"
                    self._events.append({**common, "time": time - 60, "verb": "search", "query": query})
                self._events.append({**common, "item": f"g{good:02d}", "verb": "purchase", "value": 1.0 + good % 5})
                reason = f"liked {COLOURS[good // 3]}, for {GUESTS[good % 3]}" if step else None
                said = {"time": time + 5, "item": f"g{good:02d}", "value": 1.0 + good % 5}
                self._reviews.append({**common, **said, "reason": reason, "text": "a"})

    def events(self) -> Iterator[pa.Table]:
        yield pa.Table.from_pylist(self._events, schema=_EVENTS)

    def items(self) -> Iterator[pa.Table]:
        yield pa.Table.from_pylist(
            [
                {
                    "item": f"g{good:02d}",
                    "title": f"{COLOURS[good // 3]} {NOUNS[good % 3]}",
                    "category": f"product > {NOUNS[good % 3]}",
                    "audience": GUESTS[good % 3],
                    "description": f"a soft {NOUNS[good % 3]}" if good % 2 else None,
                }
                for good in range(12)
            ]
        )

    def users(self) -> Iterator[pa.Table]:
        return iter(())

    def reviews(self) -> Iterator[pa.Table]:
        yield pa.Table.from_pylist(self._reviews)

    def conversations(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def impressions(self) -> Iterator[pa.Table]:
        return iter(())


_EVENTS = pa.schema(
    [
        ("user", pa.string()),
        ("time", pa.int64()),
        ("verb", pa.string()),
        ("query", pa.string()),
        ("item", pa.string()),
        ("value", pa.float64()),
    ]
)


def prepare_written(folder: Path, **settings: Any) -> Path:
    """Prepare the shop and return its dataset folder."""
    from m6rec.data.prepare import PrepareConfig, prepare

    prepare(WrittenShop(WrittenConfig()), folder / "data", PrepareConfig(**settings))
    return folder / "data"
