"""Finds the nearest items of the catalogue for many users at once. Knows no rule and no ranker."""

from collections.abc import Sequence
from typing import Any

from torch.nn.utils.rnn import pad_sequence

from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import PlainStage, history_of, num_candidates, runs_model


class Retrieve(PlainStage):
    """Finds the nearest items, with room for those that the filter will take out; adds ``found``.

    Where only some items are allowed, exactly these are scored.

    **Source:** M6-Rec (arXiv 2205.08084), section 3: nearest neighbours of the user's vector.
    """

    name = "retrieve"

    def wants(self, payload: Payload) -> bool:
        """Return whether a list is to be made by the models."""
        return runs_model(payload)

    def __call__(self, payloads: Sequence[Payload]) -> Sequence[Update]:
        """Return each request's positions and scores, best first."""
        offer = self.models.recommender.catalog.offer
        free = [payload for payload in payloads if payload["allow"] is None]
        found: dict[int, Any] = {}
        if free:
            # A user may be of as many vectors as its text has tokens.
            users = pad_sequence([payload["user"] for payload in free], batch_first=True)
            wanted = [num_candidates(payload) + len(payload["seen"] | payload["block"]) for payload in free]
            searched = offer.search(users, [history_of(payload) for payload in free], wanted)
            found = {id(payload): own for payload, own in zip(free, searched, strict=True)}
        for payload in payloads:
            if payload["allow"] is not None:
                found[id(payload)] = offer.order(payload["user"], history_of(payload), sorted(payload["allow"]))
        return [{"found": list(zip(*found[id(payload)], strict=True))} for payload in payloads]
