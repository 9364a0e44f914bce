"""Says how likely events in words are. Knows no catalogue."""

from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import PlainStage


class Score(PlainStage):
    """Gives the log-likelihood of each text behind a history, in nats.

    **Source:** M6-Rec (arXiv 2205.08084), section 3, zero-shot by the likelihood of a text.
    """

    name = "score"
    kinds = ("score",)

    def size(self, payload: Payload) -> float:
        """Return the number of texts."""
        text = payload["request"].get("text", "")
        return 1.0 if isinstance(text, str) else float(max(1, len(text)))

    def one(self, payload: Payload) -> Update:
        """Return the scores."""
        text = payload["request"].get("text", "")
        texts = [text] if isinstance(text, str) else list(text)
        return {"answer": {"scores": self.models.recommender.score(texts, payload["request"].get("history", ""))}}
