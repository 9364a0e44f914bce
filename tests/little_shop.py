"""A little shop's log, small enough to train on in a second, with a known pattern: users walk round the goods."""

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np

ADJECTIVES = ["red", "blue", "green", "soft", "warm", "winter"]
NOUNS = ["shirt", "shoes", "book", "lamp", "chair", "phone"]
SMALL = {
    "retrieval": [
        "task.dim=16",
        "task.whiten=16",
        "task.tower_width=16",
        "task.max_events=8",
        "task.pooled.width=16",
        "task.pooled.num_heads=2",
        "training.num_epochs=2",
        "training.batch_size=16",
    ],
    "retrieval-flat": ["task.dim=16", "task.max_events=6", "training.batch_size=8", "training.max_steps=2"],
    "retrieval-maxsim": ["task.dim=16", "task.max_events=6", "training.batch_size=8", "training.max_steps=2"],
    "pretrain-small": [
        *("task.row_tokens=96", "training.batch_size=4"),
        *("training.num_epochs=null", "training.max_steps=2"),
    ],
    "title": ["task.max_events=3", "task.max_branches=4", "training.batch_size=2", "training.max_steps=2"],
    "ranking": [
        "task.threshold=4",
        "task.max_events=6",
        "task.max_branches=8",
        "training.batch_size=4",
        "training.max_steps=3",
    ],
    "zeroshot": ["task.max_events=6", "task.candidates=5"],
    "fewshot": ["task.max_events=6", "task.shots=8", "training.batch_size=4", "training.max_steps=3"],
}
SMALL["cold-items"] = [
    *SMALL["ranking"],
    *("task.phases.shots=1", "task.phases.min_queries=3", "tuner.width=8"),
]
SMALL["cold-users"] = [
    *("task.threshold=4", "task.protocol.support=4", "task.protocol.min_queries=2", "task.text_width=8"),
    *("task.attributes=12", "task.dim=3", "task.two_stage.hidden=8", "task.draws=3", "training.batch_size=16"),
    *("task.modulation.widths=[8,6]", "task.modulation.embedding=6", "task.modulation.hidden=16"),
]
SMALL["rocketqa"] = [*SMALL["retrieval"], "dense.hard.depth=8"]
"""Words that make each recipe small enough for a test."""


def shop_events(num_users: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Return a little shop's log: users walk round the 36 goods, mostly to the next one, and search now and then."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        place, time = int(rng.integers(36)), 1_600_000_000 + int(rng.integers(1_000_000))
        for _ in range(int(rng.integers(5, 14))):
            place, time = (place + int(rng.choice([1, 1, 1, 2, 5]))) % 36, time + int(rng.integers(60, 90_000))
            row = {"who": f"u{user:03d}", "when": time}
            if rng.random() < 0.1:
                rows.append({**row, "what": "", "did": "search", "stars": "", "query": NOUNS[place % 6]})
            stars = 1 + (place * 7 + user) % 5
            did = "buy" if rng.random() < 0.4 else "view"
            rows.append({**row, "when": time + 30, "what": f"g{place:02d}", "did": did, "stars": stars, "query": ""})
    return rows


def write_shop(folder: Path, events: list[dict[str, Any]]) -> Path:
    """Write ``log.csv`` and ``goods.csv`` under names of their own; return the log."""
    goods = [
        {
            "what": f"g{place:02d}",
            "label": f"{adjective} {noun}",
            "aisle": f"{noun}s",
            "maker": adjective,
            "price": place,
        }
        for place, (adjective, noun) in enumerate(itertools.product(ADJECTIVES, NOUNS))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("log.csv", events), ("goods.csv", goods)):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder / "log.csv"


def prepare_shop(folder: Path, events: list[dict[str, Any]], **settings: Any) -> Path:
    """Prepare a little shop's log and return the dataset folder."""
    from m6rec.data.prepare import PrepareConfig, prepare
    from m6rec.data.sources.table import CsvSource

    log = write_shop(folder / "log", events)
    columns = {"user": "who", "item": "what", "time": "when", "event": "did", "value": "stars", "query": "query"}
    words = {"title": "label", "brand": "maker", "category": "aisle"}
    config = CsvSource.Config(path=str(log), items=str(log.with_name("goods.csv")), **columns, **words)
    prepare(CsvSource(config), folder / "data", PrepareConfig(**settings))
    return folder / "data"
