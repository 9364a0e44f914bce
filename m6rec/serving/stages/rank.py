"""Orders candidates by the ranker, many requests at once, its lower layers from the tiers. Knows no index."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.assemble import Run
from m6rec.compressors.exits import ExitingBackbone
from m6rec.late_interaction.scorer import LateScorer
from m6rec.requests import read_candidate, read_events, with_record
from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import Models, PlainStage, num_candidates
from m6rec.tasks.ranking.task import Placed, Ranking
from m6rec.text.batch import collate
from m6rec.text.prompt import UserText

Question = tuple[UserText, list[Placed]]


class Rank(PlainStage):
    """Orders the candidates of many requests by the ranker's probability of a yes; replaces ``found``.

    Over late interaction every candidate of a request is a branch of one tree, whose segments come from the tiers. On a
    rung with a depth, a ranker that was trained to exit early runs no more layers than that.

    **Source:** M6-Rec (arXiv 2205.08084), multi-segment late interaction.
    """

    name = "rank"

    def __init__(self, config: Any, models: Models) -> None:
        super().__init__(config, models)
        self._run: Run | None = models.recommender.ranker
        self._depth = threading.Lock()

    def wants(self, payload: Payload) -> bool:
        """Return whether a run ranks, and the request wants that."""
        if self._run is None or "answer" in payload or not payload["rung"].model:
            return False
        return payload["kind"] in ("recommend", "rank")

    def size(self, payload: Payload) -> float:
        """Return the number of candidates."""
        found = payload.get("candidates") if payload["kind"] == "rank" else payload.get("found")
        return float(num_candidates(payload) if found is None else len(found))

    def bucket(self, payload: Payload) -> Any:
        """Return the depth: a batch runs the same layers."""
        return payload["rung"].depth

    def __call__(self, payloads: Sequence[Payload]) -> Sequence[Update]:
        """Return each request's candidates with probabilities, best first."""
        before, candidates = self._asked(), [self._items(payload) for payload in payloads]
        scores = self._scores(payloads, candidates)
        notes = {name: count - before[name] for name, count in self._asked().items()}
        return [
            {"found": _ordered(items, own), "notes": {**notes, "candidates": len(items)}}
            for items, own in zip(candidates, scores, strict=True)
        ]

    def remember(self, payload: Payload) -> list[bytes]:
        """Have a request's segments in the tiers, and return their keys; none where the ranker keeps none."""
        if self._run is None or not isinstance(self._run.backbone, LateScorer) or not payload["found"]:
            return []
        task, question = self._run.task, (self._user(self._events(payload)), self._items(payload))
        assert isinstance(task, Ranking)
        trees, _ = task.trees([question], len(question[1]))
        return self._run.backbone.remember(collate(trees, task.tokenizer.pad_id))

    def _scores(self, payloads: Sequence[Payload], candidates: Sequence[list[Placed]]) -> Sequence[NDArray[np.float32]]:
        run, events = self._run, [self._events(payload) for payload in payloads]
        assert run is not None
        if run.recipe.scenes is not None or not isinstance(run.task, Ranking):
            contexts = [payload["request"].get("context") or {} for payload in payloads]
            rows = zip(events, candidates, contexts, strict=True)
            return [self.models.recommender.likelihoods_of_yes(run, *row) for row in rows]
        questions = list(zip(map(self._user, events), candidates, strict=True))
        if isinstance(run.backbone, ExitingBackbone):
            return self._to_depth(payloads[0]["rung"].depth, run.backbone, run.task, questions)
        # Behind a cache a candidate costs its own joint layers alone, so that all of a request's are one tree.
        whole = max(map(len, candidates)) or None if isinstance(run.backbone, LateScorer) else None
        return run.task.rank_many(run.backbone, questions, whole)

    def _to_depth(
        self, depth: int | None, backbone: ExitingBackbone, task: Ranking, questions: Sequence[Question]
    ) -> Sequence[NDArray[np.float32]]:
        with self._depth:
            whole = backbone.config
            backbone.set(replace(whole, depth=depth or whole.depth))
            try:
                return task.rank_many(backbone, questions)
            finally:
                backbone.set(whole)

    def _user(self, events: Sequence[dict[str, Any]]) -> UserText:
        assert self._run is not None
        return UserText(events=[with_record(self._run.task.catalogue, event) for event in events])

    def _events(self, payload: Payload) -> list[dict[str, Any]]:
        """Return the events, found in the ranker's own catalogue."""
        assert self._run is not None
        if payload["kind"] == "rank":
            return list(payload["events"])
        return read_events(payload["request"].get("history", ""), self._run.task.catalogue)

    def _items(self, payload: Payload) -> list[Placed]:
        assert self._run is not None
        if payload["kind"] == "rank":
            return list(payload["candidates"])
        # As records: the ranker's own catalogue may lack what has been added to the retriever's.
        return [read_candidate(self._run.task.catalogue, record) for record, _ in payload["found"]]

    def _asked(self) -> dict[str, int]:
        """Return what the tiers of segments have been asked so far."""
        tiers = self.models.segments
        return {} if tiers is None else {"segments": tiers.asked, "segments_cached": tiers.held}


def _ordered(items: Sequence[Placed], scores: NDArray[np.float32]) -> list[tuple[Mapping[str, Any], float]]:
    return [(items[place][1], float(scores[place])) for place in np.argsort(-scores, kind="stable")]
