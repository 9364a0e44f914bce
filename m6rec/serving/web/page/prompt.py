"""What the model is about to read for a request, piece by piece, and which pieces a cache holds already.

Knows runs and their caches; no screen.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from m6rec.api import Recommender
from m6rec.assemble import Run
from m6rec.late_interaction.cache import segment_key
from m6rec.late_interaction.scorer import LateScorer
from m6rec.requests import History, read_candidate, read_events, with_record
from m6rec.tasks.ranking.task import Ranking
from m6rec.text.prompt import UserText


@dataclass(frozen=True)
class Piece:
    """A segment of a prompt.

    Args:
        text: as the tokenizer gives it back.
        tokens: how many.
        branch: 0 = the user's trunk, which all candidates share; 1 = the candidate.
        cached: whether its states are kept; ``None`` = this model keeps none.
    """

    text: str
    tokens: int
    branch: int
    cached: bool | None


def prompt_of(recommender: Recommender, history: History, item: str | dict[str, Any]) -> list[Piece]:
    """Return the prompt of a history and one candidate: the ranker's, or else what the retrieval run reads.

    Asking a cache takes nothing out of it and puts nothing into it.
    """
    ranker = recommender.ranker
    if ranker is not None and isinstance(ranker.task, Ranking):
        return _ranked(ranker, history, item)
    return _retrieved(recommender, history)


def _ranked(run: Run, history: History, item: str | dict[str, Any]) -> list[Piece]:
    task = run.task
    assert isinstance(task, Ranking)
    catalogue = task.catalogue
    user = UserText(events=[with_record(catalogue, event) for event in read_events(history, catalogue)])
    (tree,), _ = task.trees([(user, [read_candidate(catalogue, item)])])
    cuts = np.flatnonzero(np.diff(tree.segments) | np.diff(tree.branches)) + 1
    ids, branches = np.split(tree.ids, cuts), [int(part[0]) for part in np.split(tree.branches, cuts)]
    keys = [segment_key(part, branch > 0) for part, branch in zip(ids, branches, strict=True)]
    held: list[bool | None] = [None] * len(keys)
    if isinstance(run.backbone, LateScorer):
        held = [states is not None for states in run.backbone.cache.get_many(keys)]
    words = [task.tokenizer.tokenizer.decode(part.tolist()) for part in ids]
    return [Piece(*each) for each in zip(words, map(len, ids), branches, held, strict=True)]


def _retrieved(recommender: Recommender, history: History) -> list[Piece]:
    """Return one piece an event: a known item's vector was made before, a stranger's words are read now."""
    task = recommender.catalog.retrieval
    events = read_events(history, task.catalogue)[-task.config.max_events :]
    pieces = []
    for event in events:
        text = task.renderer.event(with_record(task.catalogue, event))[1]
        pieces.append(Piece(text, len(task.tokenizer.text(text)), 0, event["place"] is not None))
    return pieces
