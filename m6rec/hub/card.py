"""The model card of a run on the Hub: written from the run's own files, and held against them when it comes back.

Its words stand in ``card.md``. This module knows no network.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
import yaml
from safetensors import SafetensorError, safe_open

from m6rec.errors import HubError
from m6rec.hub.staging import MODEL_CARD, hub_id, is_hub_id
from m6rec.runs import CARD_FILE, RECIPE_FILE, TASK_FOLDER, read_card, read_recipe_tree
from m6rec.tuners.files import CONFIG_FILE, CONTROL_FILE, read_adapter_card

# By PEFT's name of a family's task; an adapter of ours has none.
_AUTO = {
    "FEATURE_EXTRACTION": "AutoModel",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


@dataclass(frozen=True)
class Figures:
    """What an evaluation of the run found.

    Args:
        title: data and split.
        metrics: columns.
        rows: recommender -> metric -> mean; the run's own row is called ``ours``.
        protocol: how it was measured, in words.
    """

    title: str
    metrics: list[str]
    rows: dict[str, dict[str, float | None]]
    protocol: str

    def table(self) -> str:
        """Return the figures as a Markdown table."""
        lines = [[self.title, *self.metrics], ["---"] * (len(self.metrics) + 1)]
        for name, means in self.rows.items():
            cells = (means[metric] for metric in self.metrics)
            lines.append([name, *("-" if cell is None else f"{cell:.4f}" for cell in cells)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_figures(path: Path, run: Path) -> Figures:
    """Read what ``m6rec evaluate RUN --json FILE`` wrote.

    Raises:
        HubError: no such file, or an evaluation of another run or other data.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        report, rows = found["report"], found["report"]["rows"]
        metrics = [name for name in rows["ours"]["metrics"] if "@" not in name or "@10" in name]
        recipe, data = dict(found["recipe"]), found["data"]["hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HubError(
            f"{path}: not readable as an evaluation ({type(error).__name__}: {error}); make one with: "
            f"m6rec evaluate {run} --json {path}"
        ) from error
    own = read_recipe_tree(run)
    other = any(recipe.get(part) != own.get(part) for part in ("task", "tuner", "seed"))
    if other or data != read_card(run)["data"]["hash"]:
        raise HubError(f"{path} is the evaluation of another run than {run}; make one with: m6rec evaluate {run}")
    means = {name: {metric: row["metrics"].get(metric) for metric in metrics} for name, row in rows.items()}
    return Figures(report["title"], metrics, means, _in_words(found["protocol"]))


def write_model_card(folder: Path, name: str, figures: Figures | None = None) -> None:
    """Write the model card of a staged run.

    Args:
        folder: as :func:`m6rec.hub.staging.stage` filled it.
        name: ``owner/name`` on the Hub.
        figures: what an evaluation found.
    """
    facts = _facts(folder, name, figures)
    head = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)
    words = resources.files("m6rec.hub").joinpath("card.md").read_text(encoding="utf-8")
    body = jinja2.Environment(keep_trailing_newline=True).from_string(words).render(facts)
    (folder / MODEL_CARD).write_text(f"---\n{head}---\n\n{body}", encoding="utf-8")


def _facts(folder: Path, name: str, figures: Figures | None) -> dict[str, Any]:
    """Return everything that ``card.md`` speaks of."""
    card, tree = read_card(folder), read_recipe_tree(folder)
    config = _json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    catalogue = folder / TASK_FOLDER / "catalogue" / "items.parquet"
    counts = card["data"]["counts"]
    return {
        "name": name,
        "base": hub_id(card["backbone"]["name"]),
        "fingerprint": card["backbone"]["fingerprint"],
        "task": card["task"],
        "tuner": card["tuner"],
        "description": tree.get("description"),
        "auto": _AUTO.get(config.get("task_type", "")) if "peft_type" in config else None,
        "trained": card["trained_parameters"],
        "catalogue": pq.read_metadata(catalogue).num_rows if catalogue.is_file() else 0,
        "adapter": sorted({path.name for path in folder.iterdir() if path.is_file()} - {CARD_FILE, RECIPE_FILE}),
        "counts": _in_words({kind: counts[kind] for kind in ("users", "items", "events", "test_events")}),
        "figures": figures,
        **{fact: card[fact] for fact in ("data", "steps", "epochs", "cpu_seconds")},
    }


def _metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the Hub reads, and under ``m6rec`` what we hold against the files."""
    return {
        "base_model": facts["base"],
        "base_model_relation": "finetune" if facts["tuner"] == "full" else "adapter",
        "library_name": "m6rec",
        "tags": ["m6rec", "recommender-system", facts["task"], facts["tuner"], *(["peft"] if facts["auto"] else [])],
        "m6rec": {
            "task": facts["task"],
            "tuner": facts["tuner"],
            "base_fingerprint": facts["fingerprint"],
            "data": facts["data"]["hash"],
        },
        **({"model-index": [_index(facts)]} if facts["figures"] else {}),
    }


def _index(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures as the Hub's own table has them."""
    figures: Figures = facts["figures"]
    result = {
        "task": {"type": facts["task"]},
        "dataset": {"name": facts["data"]["name"], "type": facts["data"]["name"]},
        "metrics": [
            {"type": metric, "value": value} for metric, value in figures.rows["ours"].items() if value is not None
        ],
    }
    return {"name": facts["name"], "results": [result]}


def check_files(folder: Path) -> None:
    """Hold everything that a run on the Hub says of itself against everything else that it says.

    Raises:
        RunError: it is no finished run.
        TunerError: the adapter is missing or damaged.
        HubError: two files name different base models, a name is no Hub id, or a file is damaged.
    """
    card, tree, adapter = read_card(folder), read_recipe_tree(folder), read_adapter_card(folder)
    claims = _metadata_of(folder / MODEL_CARD)
    names = {
        MODEL_CARD: claims.get("base_model"),
        CARD_FILE: hub_id(card["backbone"]["name"]),
        RECIPE_FILE: hub_id(str((tree.get("backbone") or {}).get("name"))),
    }
    if (folder / CONFIG_FILE).is_file():
        names[CONFIG_FILE] = _json(folder / CONFIG_FILE).get("base_model_name_or_path")
    weights = {
        MODEL_CARD: (claims.get("m6rec") or {}).get("base_fingerprint"),
        CARD_FILE: card["backbone"]["fingerprint"],
        CONTROL_FILE: adapter.fingerprint,
    }
    for claimed in (names, weights):
        if len(set(claimed.values())) > 1:
            said = "; ".join(f"{file} says {value!r}" for file, value in claimed.items())
            raise HubError(
                f"got files that contradict each other about the base model, so one of them lies: {said}; "
                "do not use this, and tell whoever published it"
            )
    if not is_hub_id(str(names[CARD_FILE])):
        raise HubError(f"got the base model {names[CARD_FILE]!r}, expected a Hub id; do not use this")
    for path in folder.rglob("*.safetensors"):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise HubError(
                f"{path} is damaged ({error}); try again, and if it stays so, tell whoever published it"
            ) from error


def _in_words(facts: Mapping[str, Any]) -> str:
    """Return facts as an enumeration.

    >>> _in_words({"tie_seed": 0, "split": {"rule": "leave-one-out", "cutoffs": []}, "users": 12345})
    'tie seed 0, split (rule leave-one-out), users 12,345'
    """
    said = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            value = f"({_in_words(value)})"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        if value not in (None, [], ""):
            said.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(said)


def _metadata_of(path: Path) -> dict[str, Any]:
    """Return the YAML at the head of a model card."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    _, _, rest = text.partition("---\n")
    try:
        found = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise HubError(f"{path} is missing or has no YAML at its head; expected a model card as m6rec writes it")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HubError(f"{path} is damaged ({error}); get it again from where it was published") from error
    return found
