"""The settings of distillation. This module knows no teacher and loads no torch."""

from dataclasses import dataclass, field
from typing import Literal

from m6rec.errors import ConfigError

Taught = Literal["logits", "listwise", "margin", "vectors"]


@dataclass(frozen=True)
class StreamConfig:
    """How labels flow from teachers to a student. Nothing here changes what is learnt, but for `ordered: false`."""

    ordered: bool = True
    """Whether batches are learnt in the order of the seed, so that no failure changes a weight; false = as their labels
    come, which never waits for a slow teacher, and changes results from run to run. One process only."""
    window: int | None = None
    """Batches that are asked for at once; null = two for each teacher and two more. Changes speed and memory only."""
    lease_seconds: float = 120.0
    """How long a teacher may hold a batch before another one gets it too. Changes speed only."""
    patience_seconds: float = 300.0
    """How long to wait while there is no teacher at all, before the run ends with an error; it can be resumed."""
    max_attempts: int = 3
    """Failures of one batch (teachers that died over it, or said that they cannot) before the run ends."""
    mix_versions: bool = False
    """Whether teachers with other weights than the first one's may label too. Changes results."""
    report_seconds: float = 30.0
    """Seconds between two lines about teachers, labels and waiting. Changes nothing else."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: got {getattr(self, name)}, expected a number above 0"
            for name in ("lease_seconds", "patience_seconds", "report_seconds")
            if not getattr(self, name) > 0
        ]
        problems += [
            f"{name}: got {value}, expected 1 or more"
            for name, value in (("window", self.window), ("max_attempts", self.max_attempts))
            if value is not None and value < 1
        ]
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass(frozen=True)
class DistillationConfig:
    """Who teaches a student, what, and by which way."""

    teacher: str | tuple[str, ...] | None = None
    """Run folder of the teacher, or of several, whose losses are averaged. Changes results."""
    source: Literal["elastic", "online", "offline"] = "elastic"
    """Where labels come from: teachers in processes of their own that may come and go; the teacher inside the student's
    process; or labels written once into the run folder and read back. Changes speed only, as long as a batch reads the
    same in every epoch."""
    teachers: tuple[str, ...] = ("local",)
    """Where elastic teachers run, one word each: `local`, `ray`, or `remote:http://HOST:PORT` of a
    scripts/serve_teacher.py. The list lies in the run folder as teachers.txt and may be edited while the run goes on.
    Changes speed only."""
    taught: Taught | None = None
    """What is held against the teacher. `logits`: each answer's classes, or its most likely tokens. `listwise`: the
    order of each yes among the no of its list. `margin`: the distances between them. `vectors`: the user's vector.
    null = vectors for retrieval, else logits. Changes results."""
    alpha: float = 0.5
    """Weight of the teacher's part of the loss; the task's own has the rest. Changes results."""
    temperature: float = 1.0
    """Softens both sides of logits and listwise; the loss is multiplied by its square. Changes results."""
    top_k: int = 32
    """Most likely tokens that a teacher tells of, beside the mass of all others. Changes results."""
    relations: float = 0.0
    """Weight of MiniLM's relations between tokens; a teacher's inner states are too large to send, so that this needs
    `source: online`. Changes results."""
    batch_size: int = 16
    """Examples that are labelled at once where labels are written (`source: offline`). Changes speed only."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """How labels flow where they come from elastic teachers."""

    def __post_init__(self) -> None:
        problems = []
        if not self.runs:
            problems.append("teacher: got none, expected a run folder: distillation.teacher=RUN")
        if not self.teachers and self.source == "elastic":
            problems.append("teachers: got none, expected a place for each, e.g. [local, local]")
        if not 0 <= self.alpha <= 1:
            problems.append(f"alpha: got {self.alpha}, expected 0 to 1")
        if not self.temperature > 0:
            problems.append(f"temperature: got {self.temperature}, expected a number above 0")
        problems += [
            f"{name}: got {value}, expected 1 or more"
            for name, value in (("top_k", self.top_k), ("batch_size", self.batch_size))
            if value < 1
        ]
        if len(self.runs) > 1 and self.source == "elastic" and not self.stream.ordered:
            problems.append("stream.ordered: got false with several teachers, expected true: each labels every batch")
        if self.relations and self.source != "online":
            problems.append(f"relations: got {self.relations} with source={self.source!r}, expected source=online")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def runs(self) -> tuple[str, ...]:
        """Run folders of the teachers."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()
