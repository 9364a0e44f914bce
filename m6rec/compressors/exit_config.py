"""The settings of early exit. This module knows no model and loads no torch."""

from dataclasses import dataclass
from typing import Literal

from m6rec.errors import ConfigError

Policy = Literal["never", "entropy", "margin", "patience", "order"]


@dataclass(frozen=True)
class ExitConfig:
    """How exits are trained, and when a candidate leaves.

    Raises:
        ConfigError: lists every impossible value at once.
    """

    weights: Literal["rising", "printed"] = "rising"
    """Weight of the loss at layer k of L: `rising` = 2k/(L(L+1)), which sums to 1; `printed` = 2k/(k(k+1)), as both
    sources print it, which falls with depth and sums to more. Changes results."""
    depth: int | None = None
    """Layers that are run at most: the budget of the hardware; null = all. Changes what is answered and how fast, not
    what is trained."""
    policy: Policy = "never"
    """What makes a candidate leave before that depth. `entropy`: of its answer, as a share of the largest possible, at
    most the threshold. `margin`: between its two likeliest answers, at least the threshold. `patience`: no answer's
    probability has moved by more than the threshold. `order`: the order of its list's best is settled. Changes what is
    answered and how fast, not what is trained."""
    threshold: float = 0.02
    """What entropy, margin and patience are held against, 0 to 1. Changes what is answered and how fast."""
    patience: int = 1
    """Layers in a row over which `patience` and `order` want no change. Changes what is answered and how fast."""
    top: int = 10
    """How many of a list's best have to keep their order. Changes what is answered and how fast."""
    first: int = 1
    """Lowest layer at which anything may leave. Changes what is answered and how fast."""
    unit: Literal["candidate", "row"] = "candidate"
    """What leaves: a candidate once it is sure, or a user's whole row once all its candidates are. Changes what is
    answered and how fast."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: got {value}, expected 1 or more"
            for name, value in (("patience", self.patience), ("top", self.top), ("first", self.first))
            if value < 1
        ]
        if self.depth is not None and self.depth < self.first:
            problems.append(f"depth: got {self.depth}, expected {self.first} (first) or more")
        if not 0 <= self.threshold <= 1:
            problems.append(f"threshold: got {self.threshold}, expected 0 to 1")
        if problems:
            raise ConfigError("\n".join(problems))
