"""Trained rows before the text, the last of which are also the weight of a task's softmax.

What option tuning and option-adapter tuning share. This module knows no task: one asks ``Backbone.options``.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.errors import ConfigError, TunerError
from m6rec.nn.options import Options, Similarity
from m6rec.tuners.start import StartConfig, starting_rows, word_rows
from m6rec.tuners.virtual import PromptedBackbone


@dataclass(frozen=True)
class AnswersConfig:
    """Settings of trained rows before the text, the last of which are answers."""

    num_virtual_tokens: int = 16
    """How many trained rows stand before the text, answers included (changes results; costs as many tokens of every
    text)."""
    num_classes: int = 2
    """How many of them, the last, are also the rows of the softmax: as many as the task has classes; 0 = none. A task
    without classes reads all of them as a prompt (changes results)."""
    similarity: Similarity = "dot"
    """How a state and an answer are compared: dot, as the paper writes it; scaled = dot over the root of the width;
    cosine, which wants a temperature near 0.1 (changes results)."""
    temperature: float = 1.0
    """What the similarity is divided by (changes results)."""
    start: StartConfig = field(default_factory=StartConfig)
    """Where the rows start."""
    answers: tuple[str, ...] = ()
    """A text for each class, e.g. [no, yes], whose words' mean row the answer starts at. None given = all start at one
    row, so that the softmax starts even, and a ranking from what its numbers say (changes results)."""
    seed: int = 0
    """Seed of the words whose rows are the start."""

    def __post_init__(self) -> None:
        if not 0 <= self.num_classes <= self.num_virtual_tokens:
            raise ConfigError(
                f"num_classes: got {self.num_classes}, expected 0 to num_virtual_tokens ({self.num_virtual_tokens}), "
                "for the answers are the last of these; set more virtual tokens"
            )
        if len(self.answers) not in (0, self.num_classes):
            raise ConfigError(f"answers: got {len(self.answers)} texts, expected {self.num_classes}; give one a class")
        if self.answers and self.start.adapter is not None:
            raise ConfigError("got answers and start.adapter, which brings answers too; remove one of them")
        if self.temperature <= 0:
            raise ConfigError(f"temperature: got {self.temperature}, expected more than 0")


class AnsweringBackbone(PromptedBackbone):
    """A backbone that reads its trained answers before every text, and hands the same rows to a softmax.

    Args:
        inner: the frozen backbone.
        rows: where the rows start.
        config: how many are answers, and how they are compared.
    """

    prompt_encoder: nn.Embedding

    def __init__(self, inner: Backbone, rows: Float[Tensor, "virtual hidden"], config: AnswersConfig) -> None:
        super().__init__(inner, nn.Embedding.from_pretrained(rows, freeze=False), len(rows))
        self.config = config

    def options(self, num_classes: int) -> Options | None:
        """Return the last rows themselves: what a loss changes here changes the prompt.

        Raises:
            TunerError: the tuner was set for another number of classes.
        """
        config = self.config
        if config.num_classes == 0:
            return None
        if num_classes != config.num_classes:
            raise TunerError(
                f"got a task with {num_classes} classes over a tuner with {config.num_classes} answers; "
                f"set tuner.num_classes={num_classes} (0 = the task brings a head of its own)"
            )
        return Options(self.prompt_encoder.weight[-num_classes:], config.similarity, config.temperature)


def with_answers(backbone: Backbone, config: AnswersConfig) -> Backbone:
    """Return the backbone with its rows before every text; the backbone itself where there are none.

    Raises:
        TunerError: the rows cannot start where they should.
    """
    if not config.num_virtual_tokens:
        return backbone
    rows = starting_rows(backbone, config.start, config.num_virtual_tokens)
    if config.num_classes and config.start.adapter is None:
        rows = torch.cat([rows[: -config.num_classes], _answers(backbone, config)])
    return AnsweringBackbone(backbone, rows, config)


def _answers(backbone: Backbone, config: AnswersConfig) -> Float[Tensor, "classes hidden"]:
    if config.answers:
        return torch.stack([word_rows(backbone, text).mean(0) for text in config.answers])
    return starting_rows(backbone, StartConfig(), 1).expand(config.num_classes, -1)
