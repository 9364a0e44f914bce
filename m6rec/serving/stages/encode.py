"""Reads users' histories as vectors, many at once. Knows no index."""

from collections.abc import Sequence

from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import PlainStage, runs_model


class Encode(PlainStage):
    """Reads each user's history as the vector that the index is asked with; adds ``user``.

    **Source:** M6-Rec (arXiv 2205.08084), section 3: the user's state at [EOS'].
    """

    name = "encode"

    def wants(self, payload: Payload) -> bool:
        """Return whether a list is to be made by the models."""
        return runs_model(payload)

    def __call__(self, payloads: Sequence[Payload]) -> Sequence[Update]:
        """Return the users' vectors, from one pass."""
        users = self.models.recommender.catalog.users([payload["events"] for payload in payloads])
        return [{"user": user} for user in users]
