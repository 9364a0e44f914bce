"""The files of an edge folder: what export writes and a phone reads. Knows no graph and loads no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import RunError

EDGE_FORMAT = 1
CARD_FILE, TOKENIZER_FILE, ITEMS_FILE, WORDS_FOLDER = "edge.json", "tokenizer.json", "items.jsonl", "templates"
# One graph for a whole tree; or two, of a late-interacting run: segments alone, and then together.
GRAPH_FILE, LOWER_FILE, UPPER_FILE = "model.onnx", "lower.onnx", "upper.onnx"
GRAPH_FILES = (GRAPH_FILE, LOWER_FILE, UPPER_FILE)
SERVED = (CARD_FILE, *GRAPH_FILES, TOKENIZER_FILE, ITEMS_FILE, WORDS_FOLDER)
"""All that a phone needs of a folder; whatever else lies in it may stay behind."""


@dataclass(frozen=True)
class EdgeCard:
    """What a graph has to be asked with.

    Args:
        task: shelf name of the task.
        domain: name of the data template.
        prompt: name of the prompt.
        depths: layers after which the graph can answer, the last one first in use.
        depth: the one that answers unless another is asked for.
        max_tokens: longest path through a tree.
        max_events: longest stretch of history.
        max_branches: most candidates in one tree.
        threshold: value from which an event is a yes.
        smoothing: how many events of average success a rate starts with.
        special: role (``pad``, ``unk``, ``cls``, ...) -> token, as the tokenizer had them.
        precision: of the weights in the graphs.
        lead: ids of the virtual tokens that two graphs read before every text.
        max_segments: longest way in segments that two graphs know; ``None`` = there is one graph.
    """

    task: str
    domain: str
    prompt: str
    depths: tuple[int, ...]
    depth: int
    max_tokens: int
    max_events: int
    max_branches: int
    threshold: float | None
    smoothing: float
    special: Mapping[str, str]
    precision: str
    lead: tuple[int, ...] = ()
    max_segments: int | None = None

    def write(self, folder: Path, versions: Mapping[str, str]) -> None:
        """Write ``edge.json``; it comes last and marks the folder as whole."""
        content = {"format": EDGE_FORMAT, **asdict(self), "versions": dict(versions)}
        (folder / CARD_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "EdgeCard":
        """Read ``edge.json``.

        Raises:
            RunError: it is missing, damaged or of another version.
        """
        path = folder / CARD_FILE
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = content["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} cannot be read ({error}); export the run again") from error
        if found != EDGE_FORMAT:
            raise RunError(
                f"{folder} has edge format {found}, this m6rec reads {EDGE_FORMAT}; export the run again with this "
                f"version, or use the one that wrote it ({content.get('versions', {}).get('m6rec', 'unknown')})"
            )
        try:
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except KeyError as error:
            raise RunError(f"{path} is damaged (no {error}); export the run again") from error


def is_edge(folder: Path) -> bool:
    """Return whether a folder holds an exported run."""
    return (folder / CARD_FILE).is_file()


class EdgeCatalogue:
    """The items that an exported run knows: fields and counted numbers, no vectors.

    Args:
        records: fields of each item, its ``key`` among them.
        numbers: ``[num_items, 2]`` popularity and positive rate, NaN where unknown.
    """

    def __init__(self, records: Sequence[dict[str, Any]], numbers: NDArray[np.float64]) -> None:
        self.records, self.numbers = records, numbers
        self._keys = {str(record["key"]): place for place, record in enumerate(records)}
        self._titles: dict[str, int] = {}
        for place, record in enumerate(records):
            self._titles.setdefault(_fold(record.get("title")), place)

    def find(self, known: str) -> int | None:
        """Return the position of an item by its key or, failing that, its title."""
        place = self._keys.get(known)
        return self._titles.get(_fold(known)) if place is None else place

    def record(self, place: int) -> dict[str, Any]:
        """Return an item's fields, its key among them."""
        return dict(self.records[place])

    def write(self, folder: Path) -> None:
        """Write ``items.jsonl``."""
        with open(folder / ITEMS_FILE, "w", encoding="utf-8") as file:
            for record, numbers in zip(self.records, self.numbers.tolist(), strict=True):
                known = [None if number != number else number for number in numbers]
                file.write(json.dumps({"record": record, "numbers": known}, ensure_ascii=False, default=str) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "EdgeCatalogue":
        """Read what ``write`` wrote.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            lines = (folder / ITEMS_FILE).read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            numbers = [[float("nan") if number is None else number for number in row["numbers"]] for row in rows]
            return cls([row["record"] for row in rows], np.array(numbers, dtype=np.float64).reshape(-1, 2))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder / ITEMS_FILE} cannot be read ({error}); export the run again") from error


def _fold(title: object) -> str:
    return " ".join(str(title or "").casefold().split())
