"""Where trained rows before the text start: at words, or at the rows of another task's adapter.

This module knows no method.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.errors import ConfigError, TunerError
from m6rec.text.segments import CONTROL_TOKENS
from m6rec.tuners.files import CONTROL_FILE, TENSORS_FILE, read_adapter_card, read_control, read_tensors

# What PEFT calls the rows in its file, and what they are called in ours.
_NAMES = ("prompt_embeddings", "prompt_encoder.weight")


@dataclass(frozen=True)
class StartConfig:
    """Where trained rows start; nothing set = at the rows of random words. Plays no part once the rows are trained."""

    text: str | None = None
    """The rows of these words, repeated or cut to the number of rows (changes results)."""
    adapter: str | None = None
    """Folder of an adapter with as many rows, trained on another task over the same backbone (changes results)."""

    def __post_init__(self) -> None:
        if self.text is not None and self.adapter is not None:
            raise ConfigError("got start.text and start.adapter, expected one of them; remove the other")


def starting_rows(backbone: Backbone, start: StartConfig, count: int) -> Float[Tensor, "count hidden"]:
    """Return the rows that training starts from, in float32.

    Args:
        backbone: bare.
        start: what was asked for.
        count: how many.

    Raises:
        TunerError: a text without words, or an adapter that is damaged, of another backbone or with other rows.

    Source: Lester et al. (arXiv 2104.08691), section 3.2 (vocabulary, text); Vu et al., SPoT (arXiv 2110.07904),
    section 2 (another task).
    """
    if start.adapter is not None:
        return _rows_of(backbone, Path(start.adapter), count)
    if start.text is not None:
        words = word_rows(backbone, start.text)
        return words.repeat(-(-count // len(words)), 1)[:count]
    ids = torch.randint(len(backbone.tokenizer) - len(CONTROL_TOKENS), (1, count), device=backbone.control.device)
    return backbone.rows(ids)[0].detach().float()


def word_rows(backbone: Backbone, text: str) -> Float[Tensor, "words hidden"]:
    """Return the rows of a text's tokens, in float32.

    Raises:
        TunerError: it has none.
    """
    ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise TunerError(f"got the text {text!r} to start from, expected one with at least one word; give one")
    return backbone.rows(torch.tensor([ids], device=backbone.control.device))[0].detach().float()


def _rows_of(backbone: Backbone, folder: Path, count: int) -> Float[Tensor, "count hidden"]:
    if not (folder / CONTROL_FILE).is_file():
        raise TunerError(
            f"got start.adapter={folder}, expected a folder that a tuner has saved; give the adapter/ of a run"
        )
    read_control(backbone, folder, read_adapter_card(folder).method)  # of the same backbone?
    tensors, _ = read_tensors(folder / TENSORS_FILE)
    rows = next((tensors[name] for name in _NAMES if name in tensors), None)
    if rows is None or rows.shape != (count, backbone.hidden_size):
        found = "no rows before the text" if rows is None else f"{len(rows)} rows of width {rows.shape[1]}"
        raise TunerError(
            f"got an adapter with {found} in {folder}, expected {count} of width {backbone.hidden_size}; "
            "start from one with as many virtual tokens (prompt, p-tuning, option, option-adapter)"
        )
    return rows.float().to(backbone.control.device)
