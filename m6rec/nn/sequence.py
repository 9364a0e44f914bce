"""From event vectors to user vectors. Pure tensors; it knows no item, no text and no loss."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from m6rec.nn.towers import Transitions
from m6rec.nn.transformer import CausalTransformer


class SequenceEncoder(nn.Module):
    """A causal transformer over event vectors, plus direct transitions from the last few.

    Args:
        dim: width of event vectors and of user vectors.
        width: width inside the transformer.
        num_layers: its depth.
        num_heads: its attention heads.
        dropout: inside its layers.
        input_dropout: on its input and on the transitions' input.
        max_events: distances that are told apart.
        num_verbs: verbs that have an embedding, the unknown one (0) included.
        num_gaps: time-gap buckets that have an embedding, the unknown one (0) included.
        num_lags: last events with a transition of their own; 0 = none.

    Source: the granularity "pooled" follows BAHE (2403.19347): deep layers read one vector an event.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        input_dropout: float,
        max_events: int,
        num_verbs: int,
        num_gaps: int,
        num_lags: int,
    ) -> None:
        super().__init__()
        self.event_norm = nn.LayerNorm(dim)
        self.inward, self.outward = nn.Linear(dim, width), nn.Linear(width, dim)
        self.verbs, self.gaps = nn.Embedding(num_verbs, width), nn.Embedding(num_gaps, width)
        for table in (self.verbs, self.gaps):
            nn.init.zeros_(table.weight)
        self.input_dropout = nn.Dropout(input_dropout)
        self.transformer = CausalTransformer(width, num_layers, num_heads, dropout, max_events)
        self.transitions = Transitions(dim, num_lags) if num_lags else None

    def forward(
        self,
        events: Float[Tensor, "batch length dim"],
        verbs: Int[Tensor, "batch length"],
        gaps: Int[Tensor, "batch length"],
        keep: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch length dim"]:
        """Return the user's state after each event (not normalised); padding stands on the right."""
        events = self.event_norm(events)
        inward = self.inward(events) + self.verbs(verbs) + self.gaps(gaps)
        states: Tensor = self.outward(self.transformer(self.input_dropout(inward), keep))
        if self.transitions is not None:
            states = states + self.transitions(self.input_dropout(events))
        return states
