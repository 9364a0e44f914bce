"""Settings of the retrieval task. Knows no tensor."""

from dataclasses import dataclass, field
from typing import Literal

from m6rec.errors import ConfigError
from m6rec.tasks.encoding import Readout, Region
from m6rec.tasks.retrieval.history_pooled import PooledConfig
from m6rec.tasks.retrieval.neighbours import NeighbourConfig


@dataclass(frozen=True)
class RetrievalConfig:
    """Settings of the retrieval task; all change results unless they say otherwise."""

    granularity: Literal["pooled", "flat"] = "pooled"
    """How a history is read: one vector an event, or one text."""
    dim: int = 128
    """Width of user and item vectors."""
    max_events: int = 50
    """Longest window of events that is read at once."""
    context_events: int = 0
    """Events repeated from the window before when a long history is cut into windows."""
    temperature: float = 0.07
    """Scores are inner products divided by this; where training starts if it is learnt."""
    learn_temperature: bool = True
    """Whether the temperature is trained."""
    negatives: Literal["catalogue", "batch"] = "catalogue"
    """Every item of the catalogue, or the other items of the batch."""
    num_negatives: int = 0
    """Further random items a batch, with `negatives=batch`."""
    logq: bool = False
    """Correct in-batch negatives for how often each item is one (with `negatives=batch`)."""
    item_region: Region = "source"
    """Where an item's text stands: `source` as sentence encoders are trained, `target` as in M6-Rec."""
    item_readout: Readout = "mean"
    """What stands for an item: the mean state of its tokens, or the state at its end token."""
    item_layers: int | None = None
    """Lower layers of the backbone that read items and pooled events; null = all."""
    item_tokens: int = 64
    """Longest item text in tokens."""
    item_vectors: Literal["cached", "epoch", "step"] = "cached"
    """Text vectors of the items: computed once, before every epoch, or in every step with gradients to the tuner."""
    whiten: int = 256
    """Principal directions kept when text vectors are whitened, all of a narrower backbone's; 0 = no whitening."""
    tower_width: int = 256
    """Hidden width of the item tower."""
    tower_dropout: float = 0.1
    """Dropout in the item tower."""
    id_residual: bool = True
    """Whether items seen in training add a learnt vector to their text's; others go by text alone."""
    id_dropout: float = 0.1
    """Share of items that lose the residual in a step, so that text alone must serve too."""
    pooled: PooledConfig = field(default_factory=PooledConfig)
    """The sequence encoder of `granularity=pooled`."""
    neighbours: NeighbourConfig = field(default_factory=NeighbourConfig)
    """Counted terms beside the learnt score."""
    prompt: str = "retrieval"
    """Prompt file of `granularity=flat`."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"temperature: got {self.temperature}, expected a positive number")
        if self.max_events < 2 or self.context_events > self.max_events // 2:
            raise ConfigError("max_events: expected at least 2, and context_events at most half of it")
