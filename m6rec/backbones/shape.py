"""The shape of a small model that is made from nothing. Knows the families' names for it; loads no library."""

from dataclasses import dataclass
from typing import Any, Literal

from m6rec.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """A small model to train from scratch, with a tokenizer trained on the corpus. Every field changes results."""

    model_type: Literal["llama", "bert", "t5"] = "llama"
    """Family: llama (rotary, read forward), bert (run as a prefix-LM) or t5 (that many layers in each stack)."""
    vocabulary: int = 3000
    """Pieces of the tokenizer at most, some 360 for bytes, ASCII signs and control among them; a small corpus has
    fewer."""
    hidden_size: int = 192
    """Width of the states; a multiple of twice num_heads."""
    num_layers: int = 4
    """Depth."""
    num_heads: int = 4
    """Attention heads."""
    feed_forward: int = 512
    """Inner width of the feed-forward layers (llama has three matrices of it, the others two)."""
    max_tokens: int = 512
    """Longest sequence."""

    def __post_init__(self) -> None:
        if problems := [
            f"{name}: got {getattr(self, name)}, expected 1 or more"
            for name in ("hidden_size", "num_layers", "num_heads", "feed_forward", "max_tokens")
            if getattr(self, name) < 1
        ]:
            raise ConfigError("\n".join(problems))
        if self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"hidden_size: got {self.hidden_size}, expected a multiple of {2 * self.num_heads} "
                "(twice num_heads: rotary positions turn pairs)"
            )

    def settings(self) -> dict[str, Any]:
        """Return the shape as the family's own config calls it."""
        if self.model_type == "t5":
            return {
                "d_model": self.hidden_size,
                "d_kv": self.hidden_size // self.num_heads,
                "d_ff": self.feed_forward,
                "num_layers": self.num_layers,
                "num_heads": self.num_heads,
                "decoder_start_token_id": 0,
            }
        return {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.feed_forward,
            "max_position_embeddings": self.max_tokens,
            "tie_word_embeddings": True,
        }
