"""What may be written next: the library's penalties and warpers, special tokens, and each prompt's constraint.

Knows no model and no search.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from m6rec.decoding.config import DecodingConfig
from m6rec.decoding.opening import Opening
from m6rec.errors import ConfigError


class Rules:
    """Changes logits before a token is chosen.

    Args:
        config: penalties and lengths.
        special_ids: ids that no answer holds.

    Differs: penalties look at the answer alone, not at the prompt as the library's decoders do: to say the user's words
        again is what a good answer does.
    """

    def __init__(self, config: DecodingConfig, special_ids: frozenset[int]) -> None:
        self.config, self.special_ids = config, special_ids
        self._penalties, self._warpers = LogitsProcessorList(), LogitsProcessorList()
        if config.repetition_penalty != 1:
            self._penalties.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        if config.no_repeat_ngram:
            self._penalties.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram))
        if config.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k:
            self._warpers.append(TopKLogitsWarper(config.top_k))
        if config.top_p < 1:
            self._warpers.append(TopPLogitsWarper(config.top_p))

    def allow(
        self,
        openings: Sequence[Opening],
        written: Int[Tensor, "rows written"],
        logits: Float[Tensor, "rows vocabulary"],
    ) -> Float[Tensor, "rows vocabulary"]:
        """Return logits with minus infinity wherever a token may not come next.

        Args:
            openings: one a row.
            written: ids so far; all rows have written as many.
            logits: of the next token; left as they are.

        Raises:
            ConfigError: a constraint leaves nothing to write.
        """
        scores = self._penalties(written, logits.clone())
        for row, opening in enumerate(openings):
            early = opening.ends if written.shape[1] < self.config.min_new_tokens else frozenset()
            scores[row, sorted((self.special_ids - opening.ends) | early)] = -torch.inf
            if opening.constraint is not None:
                scores[row] = opening.constraint(written[row], scores[row])
        if bool((scores == -torch.inf).all(1).any()):
            raise ConfigError("a constraint leaves no token to write; let it allow the prompt's end at least")
        return scores

    def warp(
        self, written: Int[Tensor, "rows written"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Return the scores that tokens are drawn by."""
        return self._warpers(written, scores)
