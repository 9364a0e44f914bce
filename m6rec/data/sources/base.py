"""What a source is: raw tables in our column names, streamed. This module knows no format and no dataset."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa


@runtime_checkable
class Source(Protocol):
    """Streams raw tables; ``prepare`` turns them into a dataset folder.

    Built as ``Source(config)`` from its frozen ``Config`` dataclass, whose fields are the command's flags. Keys are the
    log's own ids as strings; prepare gives shuffled integer ids. Tables may hold any further columns: they are kept as
    attributes.

    Attributes:
        name: shelf name.
        licence: licence or terms of the data, in words.
        domain: name of the data template that fits (a file in ``data_templates``).
    """

    Config: Any
    config: Any
    name: str
    licence: str
    domain: str

    def events(self) -> Iterator[pa.Table]:
        """Yield tables of events in file order.

        Columns: ``user`` string, ``item`` string (null for a search); optional ``time`` int64 Unix seconds, ``verb``
        string, ``value`` float32, ``query`` string, ``split`` string (train, valid, test: a split the source
        prescribes).
        """
        ...

    def items(self) -> Iterator[pa.Table]:
        """Yield tables of items: ``item`` string key; optional ``title``, ``brand``, ``category``, ``description``
        strings (a category path is joined by `` > ``), ``price`` float32.
        """
        ...

    def users(self) -> Iterator[pa.Table]:
        """Yield tables of users: ``user`` string key and any attributes; nothing where there are none."""
        ...

    def reviews(self) -> Iterator[pa.Table]:
        """Yield reviews: ``user``, ``item``, ``text``; optional ``summary``, ``value``, ``time``, ``reason``."""
        ...

    def conversations(self) -> Iterator[dict[str, Any]]:
        """Yield dialogues.

        Each is ``{"id", "split"?, "turns": [{"speaker": "USER" | "SYSTEM", "text", "items": [key, ...]}]}``.
        """
        ...

    def impressions(self) -> Iterator[pa.Table]:
        """Yield what was shown: ``user``, ``item``, ``time``, ``label`` (1 = clicked); nothing if not logged."""
        ...
