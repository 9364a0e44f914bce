"""Takes out what must not be shown: met, blocked, against the house's rules. Knows no model."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from m6rec.errors import ConfigError
from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import Models, PlainStage, history_of, num_candidates, runs_model

_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class FilterConfig:
    """The house's rules; they change results.

    Raises:
        ConfigError: a rule that cannot be read.
    """

    rules: tuple[str, ...] = ()
    """What every item has to keep, such as `price<=20` or `category!=adult`. An item without the field keeps only a
    rule with `!=`."""

    def __post_init__(self) -> None:
        for rule in self.rules:
            read_rule(rule)


class Filter(PlainStage):
    """Takes out items that the user has met, that are blocked, or against the rules; and looks deeper for others.

    So a request gets its number of items while the catalogue has them: the same as over a catalogue without the rest.
    """

    name = "filter"
    Config = FilterConfig

    def __init__(self, config: FilterConfig | None, models: Models) -> None:
        super().__init__(config, models)
        self._rules = [read_rule(rule) for rule in self.config.rules]

    def wants(self, payload: Payload) -> bool:
        """Return whether a list is to be made by the models."""
        return runs_model(payload)

    def one(self, payload: Payload) -> Update:
        """Return the candidates that may be shown, with their records."""
        catalog, unwanted, asked = self.models.recommender.catalog, payload["seen"] | payload["block"], payload["found"]
        wanted, offer, kept = num_candidates(payload), catalog.offer, []
        catalogue = catalog.retrieval.catalogue
        while True:
            kept = [
                (place, score)
                for place, score in asked
                if place not in unwanted and all(rule(catalogue.records[place]) for rule in self._rules)
            ][:wanted]
            if len(kept) >= wanted or payload["allow"] is not None or len(asked) >= int(offer.offered.sum()):
                break
            deeper = max(2 * len(asked), wanted)
            asked = list(zip(*offer.search(payload["user"][None], [history_of(payload)], [deeper])[0], strict=True))
        return {"found": [(catalogue.record(place), score) for place, score in kept]}


def read_rule(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """Return a rule as a test of an item's fields.

    Raises:
        ConfigError: it is none.

    >>> read_rule("price<=20")({"price": 12}), read_rule("price<=20")({})
    (True, False)
    """
    sign = next((sign for sign in _SIGNS if sign in text), None)
    name, _, value = (text if sign is None else text.replace(sign, "\0", 1)).partition("\0")
    if sign is None or not name.strip() or not value.strip():
        raise ConfigError(f"filter rule: got {text!r}, expected FIELD, one of {' '.join(_SIGNS)}, and a value")
    field, limit, holds = name.strip(), yaml.safe_load(value), _SIGNS[sign]

    def rule(record: Mapping[str, Any]) -> bool:
        own = record.get(field)
        if own is None or (isinstance(own, str) != isinstance(limit, str)):
            return sign == "!="
        return bool(holds(own, limit))

    return rule
