"""Where template files lie: the user's folder first, then the checkout, then the installed package.

This module knows file names, not what the files say.
"""

import os
from pathlib import Path
from typing import Literal

from m6rec.errors import TemplateError, nearest

Shelf = Literal["prompts", "data_templates"]

# A folder with sub-folders ``prompts`` and ``data_templates``; what lies there wins over what m6rec ships.
ENVIRONMENT_VARIABLE = "M6REC_TEMPLATES"


def find(shelf: Shelf, name: str | Path, folder: str | Path | None = None) -> Path:
    """Return the YAML file called ``name``.

    Args:
        shelf: ``"prompts"`` or ``"data_templates"``.
        name: a bare name (``"beauty"``), or the path of a file of the user's own (it ends in ``.yaml`` or ``.yml``).
        folder: the user's template folder; default: the environment variable ``M6REC_TEMPLATES``.

    Raises:
        TemplateError: no such file; offers the nearest name and says where it looked.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        if Path(name).is_file():
            return Path(name)
        raise TemplateError(
            f"got {str(name)!r}, which is no file; expected the path of a {shelf} file or one of its names"
        )
    places = _places(shelf, folder)
    for place in places:
        if (place / f"{name}.yaml").is_file():
            return place / f"{name}.yaml"
    looked = ", ".join(map(str, places))
    raise TemplateError(
        f"no {shelf} file called {str(name)!r}{nearest(str(name), names(shelf, folder))}; looked in {looked}"
    )


def names(shelf: Shelf, folder: str | Path | None = None) -> list[str]:
    """Return every name that :func:`find` would find, sorted."""
    return sorted({path.stem for place in _places(shelf, folder) for path in place.glob("*.yaml")})


def _places(shelf: Shelf, folder: str | Path | None) -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    own = folder or os.environ.get(ENVIRONMENT_VARIABLE)
    return ([Path(own) / shelf] if own else []) + [package.parent / shelf, package / shelf]
