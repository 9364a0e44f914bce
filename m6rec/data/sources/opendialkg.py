"""OpenDialKG: dialogues that recommend films and books along a knowledge graph.

Knows no other dataset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m6rec.data.sources.dialogue_folder import DialogueFolder


@dataclass(frozen=True)
class OpenDialKGConfig:
    """Where OpenDialKG is."""

    path: str
    """The folder with eval_SPLIT.jsonl and id2info.json, plain or gzipped. Changes results."""


class OpenDialKG(DialogueFolder):
    """OpenDialKG in the turn-by-turn form of iEvaLM; one dialogue is one user.

    The release splits by turn, so half of its test dialogues also have turns in train; here dialogues are put together
    again and split as wholes by ``prepare``.

    Source: Moon et al. 2019, "OpenDialKG"; Wang et al. 2023 (iEvaLM).
    Differs: no split of the release.
    """

    Config = OpenDialKGConfig
    name = "opendialkg"
    licence = "CC BY-NC 4.0 (OpenDialKG, Moon et al. 2019)"
    domain = "movies"

    def __init__(self, config: OpenDialKGConfig) -> None:
        super().__init__(config.path, keep_split=False)
        self.config = config

    def describe(self, info: Mapping[str, Any]) -> dict[str, str | None]:
        """Return title, year, genres and people of a film or book; what occurs twice is named once."""
        people = {
            name: ", ".join(dict.fromkeys(info.get(name) or ())) or None for name in ("director", "writer", "actor")
        }
        return {
            "title": info["name"],
            "category": "|".join(dict.fromkeys(info.get("genre") or ())) or None,
            "year": info.get("year"),
            **people,
        }
