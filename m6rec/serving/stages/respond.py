"""Puts the answer together, and keeps it for whoever asks the same. Knows no model."""

from m6rec.requests import named
from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import LISTS, PlainStage, recent_key

# Times as many items as asked for are kept, for a user who has met some of them when the answer is given again.
SPARE = 2
# Of an item in the query cache, about: three texts and a number.
_ITEM_BYTES = 400


class Respond(PlainStage):
    """Gives the items that were asked for, best first; what whole service has made goes into the query cache."""

    name = "respond"
    kinds = (*LISTS, "rank")

    def one(self, payload: Payload) -> Update:
        """Return the answer."""
        most = len(payload["found"]) if payload["kind"] == "rank" else payload["k"]
        found = [vars(named(record, score)) for record, score in payload["found"][: SPARE * most]]
        if found and "explanation" in payload:
            found[0] = {**found[0], "explanation": payload["explanation"]}
        is_whole = payload["rung"].candidates is None and payload["rung"].depth is None
        if self.models.answers is not None and payload["kind"] in LISTS and is_whole:
            _, revision = payload["key"]
            for key in (payload["query"], recent_key(payload, self.models.version)):
                self.models.answers.put(key, {"items": found}, revision, _ITEM_BYTES * (1 + len(found)))
        return {"answer": {"items": found[:most]}}
