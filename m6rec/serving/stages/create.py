"""Makes what does not exist yet. Knows no catalogue."""

from dataclasses import asdict

from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import PlainStage


class Create(PlainStage):
    """Writes titles, queries or descriptions for a user or a group.

    **Source:** M6-Rec (arXiv 2205.08084), section 3, content creation.
    """

    name = "create"
    kinds = ("create",)

    def size(self, payload: Payload) -> float:
        """Return how many are asked for."""
        return float(payload["request"].get("n", 1))

    def one(self, payload: Payload) -> Update:
        """Return what was made."""
        request = payload["request"]
        chosen = {name: request[name] for name in ("kind", "n", "item", "apart") if request.get(name) is not None}
        made = self.models.recommender.create(request.get("history", ""), **chosen, **(request.get("decoding") or {}))
        return {"answer": {"created": [{**asdict(one), "text": str(one)} for one in made]}}
