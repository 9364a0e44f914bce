"""Shelves: named plug-ins that are imported only when asked for.

A table holds text (``"package.module:Attribute"``), so that listing a shelf or importing m6rec loads no torch.
Third parties add names through an entry-point group (``m6rec.tuners`` and so on); a name of ours cannot be replaced.
This module knows no plug-in.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from m6rec.errors import ConfigError, UnknownNameError

# A docstring's source runs to the next blank line or label.
_SOURCE = re.compile(r"Source:\**\s*(.+?)(?=\n\s*\n|\n\**[A-Z]\w+:|\Z)", re.DOTALL)


class Registry(Mapping[str, str]):
    """One shelf's table from name to ``"module:attribute"``.

    Args:
        kind: the singular noun used in messages, e.g. ``"tuner"``.
        table: name -> ``"package.module:Attribute"``.
        group: entry-point group that third parties may fill; ``None`` closes the shelf.

    >>> shelf = Registry("counter", {"counter": "collections:Counter"})
    >>> shelf.load("counter")("aab")["a"]
    2
    """

    def __init__(self, kind: str, table: Mapping[str, str], group: str | None = None) -> None:
        self.kind, self.group, self._own = kind, group, dict(table)

    @functools.cached_property
    def _table(self) -> dict[str, str]:
        if self.group is None:
            return self._own
        strangers = {point.name: point.value for point in _installed().select(group=self.group)}
        return {**strangers, **self._own}

    def __getitem__(self, name: str) -> str:
        try:
            return self._table[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._table) from None

    def __contains__(self, name: object) -> bool:
        # Mapping's own would wait for a KeyError, which an unknown name here is not.
        return name in self._table

    def get(self, name: str, default: Any = None) -> Any:
        """Return where ``name`` points to, or ``default``."""
        return self._table.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def load(self, name: str) -> Any:
        """Import and return the plug-in called ``name``.

        Raises:
            UnknownNameError: no such name; offers the nearest.
            ConfigError: the table's text points nowhere.
            ModuleNotFoundError: the plug-in itself imports something that is not installed.
        """
        target = self[name]
        place, _, attribute = target.partition(":")
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            # A plug-in's own missing dependency is another matter, and says so itself.
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(f"{self.kind} {name!r} points to {target!r}, but there is no such module") from error
        if not hasattr(module, attribute):
            raise ConfigError(f"{self.kind} {name!r} points to {target!r}, but the module has no such attribute")
        return getattr(module, attribute)

    def describe(self, name: str) -> tuple[str, str]:
        """Return the first line of a plug-in's docstring and its ``Source:`` (empty where it has none)."""
        text = inspect.getdoc(self.load(name)) or ""
        found = _SOURCE.search(text)
        source = " ".join(found.group(1).split()) if found else ""
        return text.partition("\n")[0], source.strip("* ")


@functools.cache
def _installed() -> Any:  # EntryPoints; Python 3.11 wraps them
    # Read once for all shelves: it opens a file of every package that is installed, 0.05 CPU-s a time.
    return entry_points()
