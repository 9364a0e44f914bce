"""How a retrieval task is taught beyond its own loss. Knows no tensor."""

from dataclasses import dataclass, field
from typing import Literal

from m6rec.errors import ConfigError


@dataclass(frozen=True)
class HardConfig:
    """Denoised hard negatives: items that the retriever likes and the ranker is sure about."""

    num: int = 0
    """Hard negatives of each position; 0 = none. Changes results."""
    rule: Literal["none", "absolute", "quantile", "relative"] = "quantile"
    """When the ranker is sure: its probability is below `threshold`; or among the lowest share `threshold` of the list;
    or below `threshold` times the positive's; none = all that was mined. Changes results."""
    threshold: float = 0.5
    """See `rule`. Changes results."""
    depth: int = 50
    """Items mined for each position. Changes results."""
    refresh_every: int | None = None
    """Mine again with the retriever as it is by then, every so many epochs; null = never. Changes results."""
    index: str = "exact"
    """Name on the indexes shelf that mining searches with. Changes speed (and, for a graph, results slightly)."""
    shards: int = 1
    """Pieces that the index is cut into, of which one is in memory. Changes memory and speed only."""
    ray_workers: int = 0
    """Ray Data workers that mine before training starts, on machines that see the same disk (extra `ray`); 0 = the
    processes that train. Changes speed only."""


@dataclass(frozen=True)
class PseudoConfig:
    """Pseudo labels: what the ranker would bet on where nobody has said what comes next."""

    share: float = 0.0
    """Unlabelled moments that get a pseudo-positive: those that the ranker is surest about; 0 = none. Which probability
    that takes is calibrated on validation. Changes results."""
    crops: int = 1
    """Sub-histories of each user, some events left out, beside the whole history. Changes results."""
    drop: float = 0.3
    """Share of events that a sub-history lacks. Changes results."""
    cap: int = 20
    """Pseudo-positives that one item may be, at most; against a collapse onto what is popular. Changes results."""


@dataclass(frozen=True)
class DistilConfig:
    """The ranker as a teacher of the retriever."""

    loss: Literal["kl", "margin-mse"] = "kl"
    """What is compared: distributions over a list, or margins to the positive. Changes results."""
    weight: float = 0.0
    """Weight beside the contrastive loss; 0 = none. Changes results."""
    places: int = 8
    """Mined items a list, drawn anew in every step. Changes results."""
    temperature: float = 1.0
    """Of both sides of `kl`. Changes results."""
    joint: bool = False
    """Whether the ranker learns too, by a listwise loss of its own (RocketQAv2). Changes results."""


@dataclass(frozen=True)
class DenseConfig:
    """How a retrieval task is taught."""

    gather: bool = True
    """Whether what one process reads are negatives of every process (needs training.gradient_accumulation=1). Changes
    results with more than one process."""
    chunk: int | None = None
    """Windows read at once in a batch; the loss compares all of them. Memory and speed only; null = all at once."""
    mask_taken: bool = False
    """Whether nothing that a user takes at any time in training is a negative of theirs; else only what they had met
    by then. Changes results."""
    guide: float | None = None
    """Mask negatives that the first retriever scores above the positive less this margin, in logits; null = none.
    Changes results."""
    hard: HardConfig = field(default_factory=HardConfig)
    """Hard negatives."""
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    """Pseudo labels."""
    distil: DistilConfig = field(default_factory=DistilConfig)
    """The ranker as a teacher."""
    ranker: str | None = None
    """Folder of a ranking run that takes the ranker's part; null = the retriever's score and the counted terms
    together. Changes results."""
    teacher: str | None = None
    """Folder of the retrieval run that mines; null = the stages before this one make it. Changes results."""

    @property
    def needs_lists(self) -> bool:
        """Whether anything is learnt from what a retriever found."""
        return bool(self.hard.num or self.pseudo.share or self.distil.weight or self.guide is not None)

    def __post_init__(self) -> None:
        problems = [
            (self.hard.num < 0 or self.hard.depth < 1, "hard: expected num from 0 and depth from 1 up"),
            (self.hard.ray_workers < 0, f"hard.ray_workers: got {self.hard.ray_workers}, expected 0 or more"),
            (not 0 <= self.hard.threshold <= 1, f"hard.threshold: got {self.hard.threshold}, expected 0 to 1"),
            (not 0 <= self.pseudo.share <= 1, f"pseudo.share: got {self.pseudo.share}, expected 0 to 1"),
            (not 0 <= self.pseudo.drop < 1, f"pseudo.drop: got {self.pseudo.drop}, expected 0 up to but not 1"),
            (self.pseudo.cap < 1, f"pseudo.cap: got {self.pseudo.cap}, expected 1 or more"),
            (self.distil.temperature <= 0, "distil.temperature: expected a positive number"),
            (self.distil.places < 1, f"distil.places: got {self.distil.places}, expected 1 or more"),
            (self.chunk is not None and self.chunk < 1, f"chunk: got {self.chunk}, expected 1 or more"),
        ]
        if wrong := [text for failed, text in problems if failed]:
            raise ConfigError("; ".join(wrong))
