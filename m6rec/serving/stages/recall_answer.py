"""Looks whether the same has been answered a moment ago. Knows no model."""

from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import LISTS, PlainStage


class RecallAnswer(PlainStage):
    """L0, the query cache: gives the answer that the same question had a moment ago, over the same catalogue.

    **Source:** the query cache of JIZHI (arXiv 2106.01674).
    """

    name = "recall_answer"
    kinds = LISTS

    def wants(self, payload: Payload) -> bool:
        """Return whether there is a cache, and the question one for a list."""
        return self.models.answers is not None and super().wants(payload)

    def one(self, payload: Payload) -> Update:
        """Return the answer, or nothing."""
        assert self.models.answers is not None
        answer = self.models.answers.get(payload["query"], self.models.revision)
        if answer is None:
            return {"notes": {"hit": False}}
        return {"answer": answer, "made_by": "cache", "notes": {"hit": True}}
