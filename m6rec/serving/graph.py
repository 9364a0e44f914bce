"""A graph of stages: checked once, and asked what comes next. This module knows no queue and no clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any

from m6rec.errors import ConfigError, nearest
from m6rec.serving.shedding import Ladder
from m6rec.serving.stage import Event, Payload, Stage, StagePlan


def _nothing() -> dict[str, Any]:
    return {}


def _close() -> None:
    return None


@dataclass(frozen=True)
class Graph:
    """Stages, what they may be asked, and of which models they are.

    A stage runs once all its parents are behind a request; one that a request does not want counts as behind it. Stages
    that share no order run at the same time, and a stage with several parents waits for all of them.

    Args:
        stages: in any order.
        kinds: of requests that it answers.
        version: of the models; part of every cache key.
        ladder: what is given up under load, step by step.
        models: what the stages work with, for whoever composes or reports; the graph itself does not look at it.
        tiers: returns tier -> ``hits``, ``misses``, ``used_bytes``.
        source: makes the graph anew in another process; ``None`` = its stages have to be sent there.
        close: lets models and files go, once nobody is served by it any more.

    Raises:
        ConfigError: two stages of a name, an unknown parent, a circle, or a stage before admission behind one that is
            not.
    """

    stages: tuple[Stage, ...]
    kinds: frozenset[str] = frozenset({"recommend"})
    version: str = "0"
    ladder: Ladder = field(default_factory=Ladder)
    models: Any = None
    source: Callable[[], "Graph"] | None = None
    tiers: Callable[[], dict[str, Any]] = _nothing
    close: Callable[[], None] = _close

    def __post_init__(self) -> None:
        if len(self.by_name) < len(self.stages):
            raise ConfigError(f"got stages {[stage.name for stage in self.stages]}, expected distinct names")
        for stage in self.stages:
            for parent in stage.parents:
                if parent not in self.by_name:
                    raise ConfigError(f"stage {stage.name!r}: unknown parent {parent!r}{nearest(parent, self.by_name)}")
                if stage.at_door and not self.by_name[parent].at_door:
                    raise ConfigError(f"stage {stage.name!r} runs before admission, but {parent!r} does not")
        try:
            assert self.order
        except CycleError as error:
            raise ConfigError(f"got a circle of stages: {' -> '.join(error.args[1])}; expected none") from error

    @cached_property
    def by_name(self) -> dict[str, Stage]:
        """Name -> stage."""
        return {stage.name: stage for stage in self.stages}

    @cached_property
    def order(self) -> tuple[Stage, ...]:
        """The stages, parents first; equal ones as they were given."""
        sorter = TopologicalSorter({stage.name: stage.parents for stage in self.stages})
        return tuple(self.by_name[name] for name in sorter.static_order())

    @cached_property
    def after(self) -> dict[str, tuple[Stage, ...]]:
        """Name -> all stages that come after it, on any way."""
        found: dict[str, set[str]] = {stage.name: set() for stage in self.stages}
        for stage in reversed(self.order):
            for parent in stage.parents:
                found[parent] |= {stage.name} | found[stage.name]
        return {name: tuple(stage for stage in self.order if stage.name in later) for name, later in found.items()}

    def next(self, event: Event, at_door: bool = False) -> list[Stage]:
        """Return the stages that can take an event now; those that it does not want are put behind it.

        Args:
            event: on its way.
            at_door: ask only for those before admission: what comes later may hang on the rung that it gets there.
        """
        found = []
        for stage in self.order:
            if stage.name in event.entered or stage.name in event.through or (at_door and not stage.at_door):
                continue
            if not event.through.issuperset(stage.parents):
                continue
            if stage.wants(event.payload):
                found.append(stage)
            else:
                event.through.add(stage.name)
        return found

    def path(self, payload: Payload, names: Sequence[str] | None = None) -> list[Stage]:
        """Return the queued stages that a request will go through, as far as can be told now."""
        stages = self.order if names is None else [self.by_name[name] for name in names]
        return [stage for stage in stages if stage.kind != "inline" and stage.wants(payload)]

    def planned(self, plans: Mapping[str, StagePlan]) -> "Graph":
        """Return the graph with other plans for some stages.

        Raises:
            ConfigError: a plan for a stage that is not there.
        """
        for name in plans:
            if name not in self.by_name:
                raise ConfigError(f"plan for an unknown stage {name!r}{nearest(name, self.by_name)}")
        stages = (replace(stage, plan=plans.get(stage.name, stage.plan)) for stage in self.stages)
        return replace(self, stages=tuple(stages))
