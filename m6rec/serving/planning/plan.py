"""A plan file: how much each stage and cache gets. Read by ``m6rec serve --plan``, written by ``m6rec plan``.

Knows neither how a plan is found nor who runs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from m6rec.config import parse, plain
from m6rec.errors import ConfigError
from m6rec.serving.stage import StagePlan

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What ``m6rec plan`` has found.

    Raises:
        ConfigError: lists every impossible value at once.
    """

    format: int = FORMAT
    """Of the file; others than this one are refused."""
    deadline_ms: float = 1000.0
    """How long a request had for which the plan was made; what a server allows is its own setting."""
    threads: int = 1
    """Of torch, for each batch; speed only."""
    stages: Mapping[str, StagePlan] = field(default_factory=dict)
    """Stage -> how much it gets; a stage that is not named keeps its own. Speed and memory only."""
    cache_bytes: Mapping[str, int] = field(default_factory=dict)
    """Tier of memory -> how large it is; one that is not named keeps its own size. Speed and memory only."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """How the plan came about: its log, what was expected of it, what a replay came to. Changes nothing."""

    def __post_init__(self) -> None:
        problems = []
        if self.format != FORMAT:
            problems.append(f"format: got {self.format}, this m6rec reads {FORMAT}; make the plan again")
        problems += [
            f"{name}: got {value}, expected {expected}"
            for name, value, expected, right in (
                ("deadline_ms", self.deadline_ms, "more than 0", self.deadline_ms > 0),
                ("threads", self.threads, "1 or more", self.threads >= 1),
                *((f"cache_bytes.{tier}", size, "0 or more", size >= 0) for tier, size in self.cache_bytes.items()),
            )
            if not right
        ]
        if problems:
            raise ConfigError("\n".join(problems))


def read_plan(path: str | Path) -> Plan:
    """Return the plan in a file.

    Raises:
        ConfigError: no such file, no YAML, or settings that no plan has.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read as a plan ({error}); make one: m6rec plan LOG --out {path}"
        ) from error
    return parse(Plan, tree, str(path))


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan to a file."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.draft")
    draft.write_text(yaml.safe_dump(plain(plan), sort_keys=False, allow_unicode=True), encoding="utf-8")
    draft.replace(target)
