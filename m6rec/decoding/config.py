"""Settings of decoding. Knows no model."""

from dataclasses import dataclass
from typing import Literal

from m6rec.errors import ConfigError


@dataclass(frozen=True)
class DecodingConfig:
    """How text is written; all change results."""

    strategy: Literal["greedy", "beam", "sample"] = "greedy"
    """``greedy`` takes the likeliest token, ``beam`` keeps the likeliest beginnings, ``sample`` draws."""
    max_new_tokens: int = 32
    """Longest answer in tokens."""
    min_new_tokens: int = 0
    """Shortest answer in tokens: no answer ends before."""
    temperature: float = 1.0
    """For ``sample``: below 1 the likely tokens become likelier, above 1 less likely."""
    top_k: int = 0
    """For ``sample``: draw from this many likeliest tokens; 0 = from all."""
    top_p: float = 1.0
    """For ``sample``: draw from the likeliest tokens that hold this much of the probability together."""
    repetition_penalty: float = 1.0
    """Above 1, what the answer has said already becomes less likely."""
    no_repeat_ngram: int = 0
    """No run of this many tokens comes twice in an answer; 0 = off."""
    num_beams: int = 4
    """For ``beam``: how many beginnings are kept."""
    length_penalty: float = 1.0
    """For ``beam``: a finished text's log-probability is divided by its length to this power."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    seed: int = 0
    """Of ``sample``: the same prompt, seed and draw give the same text, whatever else is in the batch."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name}: got {getattr(self, name)}, expected {expected}"
            for name, expected, right in (
                ("max_new_tokens", "1 or more", self.max_new_tokens >= 1),
                ("min_new_tokens", "0 to max_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens),
                ("temperature", "more than 0 (greedy needs none)", self.temperature > 0),
                ("top_k", "0 (off) or more", self.top_k >= 0),
                ("top_p", "more than 0, at most 1", 0 < self.top_p <= 1),
                ("repetition_penalty", "more than 0", self.repetition_penalty > 0),
                ("no_repeat_ngram", "0 (off) or more", self.no_repeat_ngram >= 0),
                ("num_beams", "1 or more", self.num_beams >= 1),
                ("stop", "texts that are not empty", all(self.stop)),
            )
            if not right
        ]
        if wrong:
            raise ConfigError("\n".join(wrong))
