"""Option tuning: prompts whose last rows are the answers of the softmax."""

from m6rec.backbones.base import Backbone
from m6rec.tuners.answers import AnswersConfig, with_answers
from m6rec.tuners.inserted import InsertedTuner


class OptionTuner(InsertedTuner):
    """Prompt tuning whose last rows are also the softmax weight: the answers stand in the question.

    A task with classes has no classifier of its own then (``Backbone.options``); for a task without, such as
    retrieval, the rows are prompts only. The control tokens' rows are trained too, as in the paper.

    Source: M6-Rec (arXiv 2205.08084), option tuning, figure 2.
    Differs: the paper is silent about where the rows start and how products are scaled: random words for the prompts,
    one and the same row for all answers, plain products. Temperature and similarity are settings to be swept.
    """

    Config = AnswersConfig
    method = "option"

    def insert(self, backbone: Backbone) -> Backbone:
        """Put the rows before every text."""
        return with_answers(backbone, self.config)
