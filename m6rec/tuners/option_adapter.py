"""Option-adapter tuning: option tuning, and a small network in parallel to every feed-forward."""

from dataclasses import dataclass

from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.tuners.answers import AnswersConfig, with_answers
from m6rec.tuners.bottleneck import Bottleneck, check_width, put_bottleneck, widest
from m6rec.tuners.inserted import InsertedTuner, sites_of


@dataclass(frozen=True)
class OptionAdapterConfig(AnswersConfig):
    """Settings of option-adapter tuning; without virtual tokens and classes it is adapter tuning alone."""

    bottleneck: int = 48
    """Hidden units of every adapter; 48 are about 1 % of all-MiniLM-L6-v2 (changes results)."""
    budget: float | None = None
    """Largest share of the backbone's parameters to train, e.g. 1%: chooses the bottleneck in place of the setting
    above (changes results)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_width(self.bottleneck, self.budget)


class OptionAdapterTuner(InsertedTuner):
    """Option tuning with a gated bottleneck in parallel to every feed-forward; about 1 % of the parameters.

    The adapters start at nothing: what the tuned backbone says at first is option tuning's.

    Source: M6-Rec (arXiv 2205.08084), option-adapter tuning: FFN'(Z) = FFN(Z) + lambda [relu(Z W1 + b1) W2 + b2].
    Differs: W2 and b2 start at 0 and lambda at 1, on which the paper is silent.
    """

    Config = OptionAdapterConfig
    method = "option-adapter"

    def insert(self, backbone: Backbone) -> Backbone:
        """Put the rows before every text, equal to option tuning's, and an adapter beside every feed-forward."""
        spans = [span for sites in sites_of(backbone, self.method) for span in sites.spans]
        tuned, width = with_answers(backbone, self.config), self.config.bottleneck
        if self.config.budget is not None:
            rows = self.config.num_virtual_tokens * backbone.hidden_size
            width = widest(backbone, self.config.budget, len(spans), gated=True, others=rows)
        for span in spans:
            put_bottleneck(self, backbone, span, Bottleneck(backbone.hidden_size, width, F.relu, gated=True))
        self.chosen = {"bottleneck": width, "budget": None}
        return tuned
