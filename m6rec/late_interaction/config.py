"""Settings of late interaction. This module knows no model."""

from dataclasses import dataclass
from typing import Literal

from m6rec.errors import ConfigError


@dataclass(frozen=True)
class LateInteractionConfig:
    """Settings of late interaction; all change results."""

    layers: int | None = None
    """How many lower layers read every segment alone (L' of the paper; of T5, encoder layers); null = all but three,
    which is what the paper keeps online."""
    granularity: Literal["token", "pooled"] = "token"
    """What goes on into the joint layers: every token, as in the paper, or a few vectors a segment."""
    vectors: int = 1
    """How many vectors a pooled segment becomes, each the mean of a stretch of its tokens."""
    max_segments: int = 128
    """Longest way in segments from the first one to the end of a candidate: size of the table of segment indices."""

    def __post_init__(self) -> None:
        if self.vectors < 1 or self.max_segments < 1:
            raise ConfigError(f"got vectors {self.vectors} and max_segments {self.max_segments}, expected 1 or more")
