"""The columns of a dataset folder. This module knows no file, no source and no order of rows.

A dataset folder holds:

- ``items.parquet``: row ``i`` is item id ``i``.
- ``users.parquet``: row ``u`` is user id ``u``.
- ``interactions.parquet``: events, sorted by user and, within a user, by time (see :mod:`m6rec.data.prepare`).
- ``impressions.parquet``, ``reviews.parquet``, ``conversations.jsonl``: where the source has them.
- ``dataset.yaml``: the manifest (:mod:`m6rec.data.manifest`).

``attributes`` holds every further column of the source as one JSON object a row, so that no column is ever lost and a
folder's schema never depends on its source.
"""

import pyarrow as pa

FORMAT = "m6rec-dataset"
VERSION = 1
MANIFEST_FILE = "dataset.yaml"
CONVERSATIONS_FILE = "conversations.jsonl"

ITEM_TEXTS = ("title", "brand", "category", "description")
"""The item columns that hold text."""

ITEMS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in ITEM_TEXTS),
        ("price", pa.float32()),
        ("attributes", pa.string()),
    ]
)
USERS = pa.schema([pa.field("key", pa.string(), nullable=False), ("attributes", pa.string())])
INTERACTIONS = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        ("time", pa.int64()),
        ("verb", pa.string()),
        ("value", pa.float32()),
        ("query", pa.string()),
        pa.field("split", pa.int8(), nullable=False),
        ("attributes", pa.string()),
    ]
)
SESSION = pa.field("session", pa.int32())
"""Further column of ``interactions.parquet`` where a session gap was asked for: 0, 1, ... within each user."""

IMPRESSIONS = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        ("time", pa.int64()),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("split", pa.int8(), nullable=False),
    ]
)
REVIEWS = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        ("text", pa.string()),
        ("summary", pa.string()),
        ("value", pa.float32()),
        ("time", pa.int64()),
        ("reason", pa.string()),
        pa.field("split", pa.int8(), nullable=False),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "items": ITEMS,
    "users": USERS,
    "interactions": INTERACTIONS,
    "impressions": IMPRESSIONS,
    "reviews": REVIEWS,
}
"""Table name -> schema; table ``t`` is the file ``t.parquet``."""

REQUIRED_TABLES = ("items", "users", "interactions")
