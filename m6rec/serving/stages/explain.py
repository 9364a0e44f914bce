"""Says why an item suits a user. Knows no ranking."""

from dataclasses import asdict
from typing import Any

from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import PlainStage


class Explain(PlainStage):
    """Writes why the best item suits the user, and which events that rests on.

    **Source:** M6-Rec (arXiv 2205.08084), section 3, explanation.
    """

    name = "explain"

    def wants(self, payload: Payload) -> bool:
        """Return whether a reason is asked for."""
        if payload["kind"] == "explain":
            return True
        asked = payload["kind"] == "recommend" and payload["request"].get("explain")
        return bool(asked) and payload["rung"].model and "answer" not in payload

    def one(self, payload: Payload) -> Update:
        """Return the explanation: the answer itself, or what goes with the best item."""
        request = payload["request"]
        history, decoding = request.get("history", ""), request.get("decoding") or {}
        if payload["kind"] == "explain":
            return {"answer": explained(self.models.recommender.explain(history, request.get("item", ""), **decoding))}
        if not payload["found"]:
            return {}
        best, _ = payload["found"][0]
        return {"explanation": explained(self.models.recommender.explain(history, best, **decoding))}


def explained(found: Any) -> dict[str, Any]:
    """Return an explanation as plain values."""
    return asdict(found)
