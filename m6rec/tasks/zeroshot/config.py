"""Settings of zero-shot and few-shot scoring, and what likelihoods come to under them. Knows no model and no words."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import ConfigError
from m6rec.tasks.likelihood import Likelihood


@dataclass(frozen=True)
class ZeroShotConfig:
    """Settings of zero-shot and few-shot scoring; all change results unless they say otherwise."""

    length: Literal["sum", "mean"] = "sum"
    """What the log-probabilities of a sentence's words come to: their sum, or their mean (length-normalised)."""
    calibration: float | None = None
    """How much of the sentence's log-likelihood without any history is taken off: 0 = nothing, 1 = pointwise mutual
    information; null = a half where items are compared, nothing where a yes and a no are told of the same item (what
    others thought of it is then an argument, not a habit of the language)."""
    popularity: bool = False
    """Whether a sentence begins with the item's popularity in words (given, not scored)."""
    threshold: float | None = None
    """Value from which an event is a yes, e.g. 4 of 5 stars. A pair is then scored by two sentences, a yes and a no
    about the same item; null = items are compared by one sentence each."""
    verdicts: tuple[float, float] = (1.0, 5.0)
    """With a threshold: the values that the no and the yes are put into words with."""
    shots: int | None = 0
    """How many sentences of the training period are learnt, drawn at random; 0 = none, null = all."""
    min_events: int = 1
    """Events before a sentence that is learnt, at least."""
    max_events: int = 20
    """Longest history in events."""
    candidates: int = 100
    """Random unseen items beside the right ones when the task is evaluated; the metrics' names say so. A catalogue in
    which a user leaves fewer unseen is ranked whole."""
    rows_at_once: int = 128
    """Sentences read together; memory and speed only."""
    prompt: str = "zeroshot"
    """Prompt file."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name}: got {getattr(self, name)}, expected {least} or more"
            for name, least in (("min_events", 0), ("max_events", 1), ("candidates", 1), ("rows_at_once", 1))
            if getattr(self, name) < least
        ]
        if self.shots is not None and self.shots < 0:
            wrong.append(f"shots: got {self.shots}, expected 0 (nothing is learnt) or more, or null for all")
        if wrong:
            raise ConfigError("\n".join(wrong))

    @property
    def weight(self) -> float:
        """The calibration, settled."""
        if self.calibration is None:
            return 0.5 if self.threshold is None else 0.0
        return self.calibration

    def compare(self, found: Likelihood, alone: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of items, in nats: higher is better.

        Args:
            found: of each item's sentence behind a history; with a threshold, of its no and its yes.
            alone: ``[sentences]`` log-likelihood of each without a history.

        >>> found = Likelihood(np.array([-6.0, -8.0]), np.array([2, 4]))
        >>> [ZeroShotConfig(length=length).compare(found, np.zeros(2)).tolist() for length in ("sum", "mean")]
        [[-6.0, -8.0], [-3.0, -2.0]]
        >>> ZeroShotConfig(calibration=1.0).compare(found, np.array([-7.0, -12.0])).tolist()
        [1.0, 4.0]
        >>> ZeroShotConfig(threshold=4).compare(found, np.array([-7.0, -12.0])).tolist()
        [-2.0]
        """
        values = found.total - self.weight * alone
        if self.length == "mean":
            values = values / np.maximum(1, found.tokens)
        if self.threshold is None:
            return values
        no, yes = values.reshape(-1, 2).T
        return yes - no
