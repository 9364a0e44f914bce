"""ReDial: dialogues in which one person recommends films to another, with the films' genres and plots.

Knows no other dataset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m6rec.data.sources.dialogue_folder import DialogueFolder
from m6rec.data.sources.film_titles import split_year


@dataclass(frozen=True)
class ReDialConfig:
    """Where ReDial is."""

    path: str
    """The folder with eval_SPLIT.jsonl and id2info.json, plain or gzipped. Changes results."""


class ReDial(DialogueFolder):
    """ReDial in the turn-by-turn form of iEvaLM; one dialogue is one user, with the release's own split.

    Source: Li et al. 2018, "Towards Deep Conversational Recommendations"; Wang et al. 2023 (iEvaLM).
    """

    Config = ReDialConfig
    name = "redial"
    licence = "CC BY 4.0 (ReDial, Li et al. 2018)"
    domain = "movies"

    def __init__(self, config: ReDialConfig) -> None:
        super().__init__(config.path, keep_split=True)
        self.config = config

    def describe(self, info: Mapping[str, Any]) -> dict[str, str | None]:
        """Return title, year, genres, plot, director and stars of a film."""
        title, year = split_year(info["name"])
        return {
            "title": title,
            "category": "|".join(info.get("genre") or ()) or None,
            "description": info.get("plot") or None,
            "year": year,
            "director": ", ".join(info.get("director") or ()) or None,
            "stars": ", ".join(info.get("star") or ()) or None,
        }
