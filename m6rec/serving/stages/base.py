"""What a stage of the recommender's graph is, and what all of them share. Knows no queue and no batch size."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m6rec.api import Recommender
from m6rec.errors import DataError, M6RecError
from m6rec.serving.stage import Payload, Update
from m6rec.serving.storage import QueryCache, SegmentTiers

# Events by which a user's former list is found again: fewer than clients send, whose windows slide.
RECENT = 16
LISTS = ("recommend", "retrieve")
"""Kinds of requests for a list of the catalogue's items."""


@dataclass
class Models:
    """The models that a graph serves, with the tiers that hold what they have found.

    Args:
        recommender: over one run or several.
        version: of the runs, in every key.
        answers: L0; ``None`` = every request is computed.
        segments: L1 to L3 of the ranker's lower states; ``None`` = it keeps none.
    """

    recommender: Recommender
    version: str
    answers: QueryCache | None = None
    segments: SegmentTiers | None = None

    @property
    def revision(self) -> int:
        """Of the catalogue: what was found at one holds until the next."""
        return self.recommender.catalog.revision


@runtime_checkable
class StagePlugin(Protocol):
    """One step of the recommender's graph: built from its config and the models.

    What a request lacks is told by an error of ours as that request's outcome; any other exception fails the batch,
    which is then run one by one.
    """

    Config: type
    config: Any
    name: str

    def __call__(self, payloads: Sequence[Payload]) -> Sequence[Update | Exception]:
        """Return what is added to each request."""
        ...

    def wants(self, payload: Payload) -> bool:
        """Return whether a request needs this."""
        ...

    def size(self, payload: Payload) -> float:
        """Return how much work a request brings."""
        ...


@dataclass(frozen=True)
class NoConfig:
    """Of a stage without settings."""


class PlainStage:
    """What most stages are: wanted by some kinds of requests, each request one unit of work.

    Args:
        config: of the stage; ``None`` = its defaults.
        models: what it works with.
    """

    Config: type = NoConfig
    kinds: tuple[str, ...] = ()

    def __init__(self, config: Any, models: Models) -> None:
        self.config, self.models = config or self.Config(), models

    def __call__(self, payloads: Sequence[Payload]) -> Sequence[Update | Exception]:
        """Return what is added to each request, one by one."""
        return [self._tried(payload) for payload in payloads]

    def one(self, payload: Payload) -> Update:
        """Return what is added to one request."""
        raise NotImplementedError

    def wants(self, payload: Payload) -> bool:
        """Return whether a request is of a kind that needs this."""
        return payload["kind"] in self.kinds

    def size(self, payload: Payload) -> float:
        """Return one."""
        return 1.0

    def _tried(self, payload: Payload) -> Update | Exception:
        try:
            return self.one(payload)
        except M6RecError as error:
            return error


def runs_model(payload: Payload) -> bool:
    """Whether a request for a list is answered by the models, and not by what is at hand."""
    return payload["kind"] in LISTS and payload["rung"].model and "answer" not in payload


def num_candidates(payload: Payload) -> int:
    """Return how many items a request for a list has retrieved, to be ranked or given.

    As many as :meth:`m6rec.api.Recommender.recommend` has, or as few as the rung allows.
    """
    k = int(payload.get("k", 10))
    if payload["kind"] == "retrieve":
        return k
    most = payload["rung"].candidates
    return max(k, min(max(5 * k, 50), most or 5 * k + 50))


def key_of(version: str, rest: Any, events: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the key of a question.

    Raises:
        DataError: a text that is no Unicode.
    """
    try:
        words = json.dumps([version, rest, events], sort_keys=True, default=str, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"got a text that is no Unicode ({error.reason}); send UTF-8 without lone surrogates"
        ) from error
    return hashlib.blake2b(words, digest_size=16).digest()


def history_of(payload: Payload) -> NDArray[np.int64]:
    """Return the positions of a request's events, -1 = no item."""
    places = [-1 if event["place"] is None else event["place"] for event in payload["events"]]
    return np.array(places, dtype=np.int64)


def recent_key(payload: Payload, version: str, fewer: int = 0) -> bytes:
    """Return the key of a question for a list by its user's newest events, or those before the ``fewer`` newest."""
    events = payload["events"]
    return key_of(version, ["recent", *payload["rest"]], events[: len(events) - fewer][-RECENT:])


def earlier_keys(payload: Payload, version: str, events: int) -> Iterator[bytes]:
    """Yield the key of a question for a list, and those that it had before its ``events`` newest events."""
    yield payload["query"]
    for fewer in range(min(events, len(payload["events"])) + 1 if events else 0):
        yield recent_key(payload, version, fewer)


def still_wanted(items: Sequence[dict[str, Any]], payload: Payload, models: Models) -> list[dict[str, Any]]:
    """Return those of an earlier answer's items that are on offer and not met since, as many as are asked for."""
    catalogue = models.recommender.catalog.retrieval.catalogue
    places = [catalogue.find(item["id"]) for item in items]
    kept = [
        item
        for item, place in zip(items, places, strict=True)
        if place is not None and catalogue.offered[place] and place not in payload["seen"]
    ]
    return kept[: payload["k"]]
