"""The embedded foundation: a small language model inside the package, checked before it is read. Knows no format."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from m6rec.errors import BackboneError

CARD_FILE = "card.json"


def foundation_folder() -> Path:
    """Return the folder of the embedded model, every file of it as its card says.

    Raises:
        BackboneError: a file is missing or damaged.
    """
    return check_folder(Path(str(files("m6rec") / "foundation")))


def check_folder(folder: Path) -> Path:
    """Return ``folder`` if each of its files has the hash in its card.

    Raises:
        BackboneError: a file, or the card, is missing or damaged.
    """
    for name, expected in read_card(folder)["sha256"].items():
        found = file_hash(folder / name)
        if found != expected:
            raise BackboneError(
                f"got {folder / name} with sha256 {found}, expected {expected}; install m6rec again, or make the "
                "foundation anew: python scripts/foundation.py"
            )
    return folder


def read_card(folder: Path) -> dict[str, Any]:
    """Return the embedded model's card: its recipe, data, figures, command and hashes.

    Raises:
        BackboneError: there is none that can be read.
    """
    try:
        card: dict[str, Any] = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        return card
    except (OSError, ValueError) as error:
        raise BackboneError(f"got no card in {folder} ({error}); install m6rec again") from error


def file_hash(path: Path) -> str:
    """Return a file's sha256.

    Raises:
        BackboneError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackboneError(f"got no {path.name} in {path.parent} ({error}); install m6rec again") from error
