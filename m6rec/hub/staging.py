"""What of a run folder goes to the Hub, and how it lies there.

Adapter, heads, catalogue, words, recipe and card; never checkpoints, logs, caches or the log of behaviour. The
adapter's files lie at the root, where PEFT looks for them, all else as in a run folder. This module knows no network.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from m6rec.backbones.resolve import MINILM
from m6rec.errors import HubError
from m6rec.runs import CARD_FILE, EXITS_FOLDER, RECIPE_FILE, TASK_FOLDER, WORDS_FOLDER, read_card, read_recipe_tree
from m6rec.tasks.withheld import withhold_items
from m6rec.tuners.files import CONFIG_FILE
from m6rec.tuners.pool import find_adapter

MODEL_CARD = "README.md"
SUFFIXES = (".json", ".yaml", ".md", ".safetensors", ".parquet")
"""Data of kinds that nothing is executed to read; no other file goes up or comes down."""


def stage(run: Path, folder: Path, base: str | None = None, *, catalogue: bool = True) -> None:
    """Copy what of a finished run goes to the Hub into an empty folder; paths of this machine stay behind.

    Args:
        run: the run folder.
        folder: to fill.
        base: Hub id of the base model, where the run names a local folder.
        catalogue: whether the items go along.

    Raises:
        RunError: no finished run.
        HubError: the base model is on nobody's Hub, or a file is of a kind that could be executed.
    """
    card, tree = read_card(run), read_recipe_tree(run)
    name = card["backbone"]["name"] if base is None else base
    _check_base(name)
    _copy(find_adapter(run), folder, deep=False)
    for part in (TASK_FOLDER, WORDS_FOLDER, EXITS_FOLDER):  # few runs have exits
        _copy(run / part, folder / part, deep=True)
    _forget_places(card, tree, run.resolve().name)
    card["backbone"]["name"] = tree["backbone"]["name"] = name
    tree["backbone"] |= {"vocabulary": "whole"}  # one that the run has cut is the base model's own by then
    if not catalogue:
        tree["task"] |= withhold_items(folder / TASK_FOLDER)
    (folder / CARD_FILE).write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    _name_base(folder / CONFIG_FILE, hub_id(name))


def _forget_places(card: dict[str, Any], tree: dict[str, Any], name: str) -> None:
    """Take every path of this machine out of a card and a recipe, in place."""
    tree |= {"data": card["data"]["name"], "out": name}
    # Where training started plays no part any more.
    tree.pop("start", None)
    tree["tuner"].pop("start", None)
    for table, key in ((tree, "domain"), (tree["task"], "prompt"), (card["data"], "domain")):
        if table.get(key):
            table[key] = Path(table[key]).stem


def hub_id(name: str) -> str:
    """Return the Hub id of a backbone's name."""
    return MINILM if name == "minilm" else name


def is_hub_id(name: str) -> bool:
    """Tell whether a backbone's name can be the same on every machine: ``owner/name``, or a name of ours.

    >>> is_hub_id("minilm"), is_hub_id("Qwen/Qwen3-0.6B"), is_hub_id("./model"), is_hub_id("/home/me/model")
    (True, True, False, False)
    """
    return hub_id(name).count("/") == 1 and not name.startswith((".", "~", "/"))


def _check_base(name: str) -> None:
    if not is_hub_id(name) or Path(name).exists():
        raise HubError(
            f"got a run on the local base model {name!r}, expected one that others can load; push the base model and "
            "name it: --base OWNER/NAME"
        )


def _copy(source: Path, target: Path, deep: bool) -> None:
    """Copy files of the allowed kinds, without the ones that are written anew.

    Raises:
        HubError: there is one of another kind.
    """
    written = (CARD_FILE, RECIPE_FILE, MODEL_CARD)
    for path in sorted(source.rglob("*") if deep else source.iterdir()):
        if path.is_dir() or path.name.startswith(".") or (not deep and path.name in written):
            continue
        if path.suffix not in SUFFIXES:
            raise HubError(
                f"got {path}, expected only {', '.join(SUFFIXES)}: nobody should have to execute a file to read it; "
                "save tensors as safetensors and all else as json"
            )
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _name_base(path: Path, base: str) -> None:
    """Write the base model's Hub id into PEFT's config, which names it as it was loaded here."""
    if path.is_file():
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
