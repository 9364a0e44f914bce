"""Settings of offline scoring. Knows no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from m6rec.errors import ConfigError


@dataclass(frozen=True)
class BatchConfig:
    """What every row of a file is asked, and how the file is cut."""

    work: str | None = None
    """recommend, retrieve, rank, explain, create, generate, score, chat or embed; changes results.
    Default: what the run was trained for."""
    k: int = 10
    """How many items a row is given by recommend and retrieve; changes results."""
    kind: str | None = None
    """What create writes: title, query, description, ...; changes results. Default: what the run was trained on."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """What a column is called in the file, where not by its own name, e.g. ``history: basket``."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Settings of :class:`m6rec.decoding.DecodingConfig`; changes results. Default: the run's own."""
    keep_errors: bool = False
    """A row that cannot be read gets a null answer and what is wrong with it in the column ``error``; otherwise the
    job stops there, and goes on where it stopped when it is started again."""
    part_rows: int = 1024
    """Rows that are answered, held in memory and lost to a cut at most; speed only."""
    executor: Literal["local", "ray"] = "local"
    """Where it runs: in this process, or on Ray Data's workers; speed only."""
    workers: int = 1
    """For ``ray``: how many processes, each with the run in its memory; speed only."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name}: got {getattr(self, name)}, expected 1 or more"
            for name in ("k", "part_rows", "workers")
            if getattr(self, name) < 1
        ]
        if wrong:
            raise ConfigError("\n".join(wrong))
