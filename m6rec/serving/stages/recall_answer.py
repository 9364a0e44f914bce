"""Looks whether the same has been answered a moment ago. Knows no model."""

from dataclasses import dataclass

from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import LISTS, PlainStage, earlier_keys, still_wanted


@dataclass(frozen=True)
class RecallConfig:
    """What counts as the same question."""

    events: int = 0
    """An answer from before this many of the user's newest events is as good as a new one, within its time; what the
    user has met since is left out of it. Changes results; 0 = the very same question alone."""


class RecallAnswer(PlainStage):
    """L0, the query cache: gives the answer that the same question had a moment ago, over the same catalogue.

    **Source:** the query cache of JIZHI (arXiv 2106.01674).
    """

    name = "recall_answer"
    Config = RecallConfig
    kinds = LISTS

    def wants(self, payload: Payload) -> bool:
        """Return whether there is a cache, and the question one for a list."""
        return self.models.answers is not None and super().wants(payload)

    def one(self, payload: Payload) -> Update:
        """Return the answer, or nothing."""
        assert self.models.answers is not None
        keys = earlier_keys(payload, self.models.version, self.config.events)
        answer = self.models.answers.get(keys, self.models.revision)
        if answer is None:
            return {"notes": {"hit": False}}
        answer = {**answer, "items": still_wanted(answer["items"], payload, self.models)}
        return {"answer": answer, "made_by": "cache", "notes": {"hit": True}}
