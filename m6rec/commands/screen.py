"""What the commands share: the screen, options, histories from files, answers as JSON. Knows no command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from m6rec.errors import ConfigError

# Titles, paths and settings are words, never markup.
console = Console(markup=False, emoji=False)

JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the answer to this file as one JSON object.")]
HistoryOption = Annotated[
    str, typer.Option("--history", help="Titles or ids separated by ';', or a JSON/JSONL file of events.")
]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, or its name on the Hub: OWNER/NAME.")]


def parts(text: str, separator: str) -> list[str]:
    """Return what stands between separators, blank parts left out."""
    return [part.strip() for part in text.split(separator) if part.strip()]


def read_history(text: str) -> Any:
    """Return the events of a JSON or JSONL file, or the text itself."""
    if not text.endswith((".json", ".jsonl")):
        return text
    path = Path(text)
    try:
        content = path.read_text(encoding="utf-8")
        if text.endswith(".jsonl"):
            return [json.loads(line) for line in content.splitlines() if line.strip()]
        events = json.loads(content)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error}); expected a list of events") from error
    return events["history"] if isinstance(events, dict) and "history" in events else events


def write_json(path: Path | None, make: Callable[[], Any]) -> None:
    """Write what ``make`` returns, where a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make(), indent=1, ensure_ascii=False, default=float), encoding="utf-8")
