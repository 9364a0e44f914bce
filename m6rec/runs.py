"""The files of a run folder: what they are called, and its card. Knows neither what a task nor what a tuner writes."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from m6rec.errors import RunError

RUN_FORMAT = 1
CARD_FILE, RECIPE_FILE, TASK_FOLDER, ADAPTER_FOLDER = "run.json", "recipe.yaml", "task", "adapter"
# The last setting that a kept recipe has.
RECIPE_END = "description"
# Whose versions a result depends on.
PACKAGES = ("m6rec", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")
EXITS_FOLDER = "exits"
# The model that a run has made to train, and the one that it has pretrained.
BASE_FOLDER, MODEL_FOLDER = "base", "model"
# The words that the run was trained on, laid out as the user's own template folder is.
WORDS_FOLDER = "templates"


def read_card(folder: Path) -> dict[str, Any]:
    """Return a finished run's ``run.json``.

    Raises:
        RunError: no run there, an unfinished one, or one of another version.
    """
    path = folder / CARD_FILE
    if not folder.is_dir():
        raise RunError(f"no run folder at {folder}; make one with: m6rec train retrieval data=DIR out={folder}")
    if not path.is_file():
        unfinished = (folder / RECIPE_FILE).is_file()
        do = (
            "finish it with: m6rec train ... --resume"
            if unfinished
            else "expected recipe.yaml, run.json, task/ and adapter/"
        )
        raise RunError(f"{folder} is no finished run (no run.json); {do}")
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = card["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); train again") from error
    if found != RUN_FORMAT:
        raise RunError(f"{folder} has run format {found}, this m6rec reads {RUN_FORMAT}; use the version that wrote it")
    return card


def read_recipe_tree(folder: Path) -> dict[str, Any]:
    """Return a run's recipe as plain values, unchecked.

    Raises:
        RunError: it is missing, no YAML mapping, or ends too early.
    """
    path = folder / RECIPE_FILE
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read ({error}); train again") from error
    if not isinstance(tree, dict):
        raise RunError(f"{path} is damaged (got {type(tree).__name__}, expected a mapping); train again")
    if RECIPE_END not in tree:  # half a recipe may well be YAML, and its other half has defaults
        raise RunError(f"{path} is damaged (it ends before `{RECIPE_END}`); train again")
    return tree


def kept_words(folder: Path, shelf: str, name: str) -> str:
    """Return the path of the template that the run was trained on, or ``name`` where the run has kept none.

    Args:
        folder: the run's.
        shelf: ``"prompts"`` or ``"data_templates"``.
        name: what the recipe calls it, a name or a path.
    """
    path = folder / WORDS_FOLDER / shelf / f"{Path(name).stem}.yaml"
    return str(path) if path.is_file() else name


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {name: version(name) for name in PACKAGES}
