"""What is given when there is no time for a model: an answer from before, or what anybody gets. Knows no queue."""

from dataclasses import dataclass
from typing import Any

from m6rec.requests import named
from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import LISTS, Models, PlainStage, earlier_keys, still_wanted


@dataclass(frozen=True)
class FallbackConfig:
    """How far back an old answer is looked for; changes what is answered under load."""

    events: int = 3
    """An answer from before this many of the user's newest events is better than a list for anybody."""
    length: int = 1_000
    """Items in the list for anybody."""


class Fallback(PlainStage):
    """Answers without a model: what the user was given lately, or the list of one who is unknown.

    What the user has met, what is not allowed, and what is no longer on offer is left out in either case.
    """

    name = "fallback"
    Config = FallbackConfig
    kinds = LISTS

    def __init__(self, config: FallbackConfig | None, models: Models) -> None:
        super().__init__(config, models)
        self._list: tuple[int, list[tuple[int, float]]] = (-1, [])

    def wants(self, payload: Payload) -> bool:
        """Return whether a request came so far down the ladder."""
        return super().wants(payload) and not payload["rung"].model

    def one(self, payload: Payload) -> Update:
        """Return an old answer, or the list for anybody."""
        old = self._old(payload)
        if old is not None:
            return {"answer": {**old, "items": still_wanted(old["items"], payload, self.models)}, "made_by": "stale"}
        catalogue = self.models.recommender.catalog.retrieval.catalogue
        unwanted, allow = payload["seen"] | payload["block"], payload["allow"]
        places = [
            (place, score)
            for place, score in self._anybodys()
            if place not in unwanted and (allow is None or place in allow) and catalogue.offered[place]
        ]
        items = [named(catalogue.record(place), score) for place, score in places[: payload["k"]]]
        return {"answer": {"items": [vars(item) for item in items]}}

    def _old(self, payload: Payload) -> dict[str, Any] | None:
        answers = self.models.answers
        if answers is None:
            return None
        return answers.get_stale(earlier_keys(payload, self.models.version, self.config.events))

    def _anybodys(self) -> list[tuple[int, float]]:
        """Return what a user without any history gets: worked out once for a state of the catalogue."""
        revision = self.models.revision
        if self._list[0] != revision:
            self._list = revision, self.models.recommender.catalog.nearest([], self.config.length)
        return self._list[1]
