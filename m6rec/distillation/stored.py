"""Labels written once and read back: the honest rival of every teacher that is kept running.

A folder holds ``part-00000.safetensors`` and so on, each with the labels of a range of examples, and ``labels.json``
with every part's size and hash; an unfinished folder is gone on with. This module knows no model, stream or loss.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from m6rec.distillation.lessons import Labels
from m6rec.errors import DistillationError

CARD_FILE, OFFSETS = "labels.json", "offsets"
# Batches in one part: what an interruption may cost.
PART_BATCHES = 64


@dataclass(frozen=True)
class LabelStore:
    """Labels of every example.

    Args:
        key: what the labels depend on (teacher, data, what is asked for).
        labels: one tensor a kind, all points of all examples one after the other.
        offsets: ``[examples + 1]`` where each example's points begin.
        num_bytes: on disk.
    """

    key: dict[str, Any]
    labels: Labels
    offsets: Tensor
    num_bytes: int

    @classmethod
    def open(cls, folder: Path, key: Mapping[str, Any], num_examples: int) -> "LabelStore":
        """Read a finished folder.

        Raises:
            DistillationError: labels of another teacher, data or task; a part that is missing or cut short.
        """
        card = _read_card(folder)
        if card["key"] != dict(key):
            changed = sorted(name for name in {*key, *card["key"]} if card["key"].get(name) != key.get(name))
            raise DistillationError(
                f"{folder} holds labels of another {', '.join(changed)}; remove it, or name another"
            )
        parts = [_read_part(folder, name, told) for name, told in sorted(card["parts"].items())]
        if not parts:
            raise DistillationError(f"{folder} holds no labels; write them again")
        counts = torch.cat([part.pop(OFFSETS).diff() for part in parts])
        if len(counts) != num_examples:
            raise DistillationError(f"{folder} holds labels of {len(counts)} examples, expected {num_examples}")
        labels = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return cls(dict(key), labels, offsets, sum(told["bytes"] for told in card["parts"].values()))


def batch_labels(store: LabelStore, indices: Sequence[int]) -> Labels:
    """Return the labels of some examples, one after the other."""
    places = torch.cat([torch.arange(int(store.offsets[i]), int(store.offsets[i + 1])) for i in indices])
    return {name: tensor[places] for name, tensor in store.labels.items()}


def write_labels(
    folder: Path,
    key: Mapping[str, Any],
    num_examples: int,
    batch_size: int,
    label: Callable[[Sequence[int]], tuple[Labels, Tensor]],
) -> int:
    """Label every example once and write the folder; parts that are there and whole are not made again.

    Args:
        folder: to write.
        key: what the labels depend on.
        num_examples: how many there are.
        batch_size: examples at once.
        label: examples by number -> labels, and ``[points]`` the place in the batch of each point's example.

    Returns:
        How many examples were labelled now.

    Raises:
        DistillationError: the folder holds other labels, or a part of it is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {"key": dict(key), "batch_size": batch_size, "parts": {}}
    if (folder / CARD_FILE).is_file():
        found = _read_card(folder)
        if found["key"] != card["key"] or found["batch_size"] != batch_size:
            raise DistillationError(f"{folder} holds other labels; remove it, or name another folder")
        card = found
    done = 0
    for number, batches in enumerate(_parts(num_examples, batch_size)):
        name = f"part-{number:05d}.safetensors"
        if name in card["parts"]:
            _read_part(folder, name, card["parts"][name])
            continue
        _write_part(folder / name, [(len(batch), *label(batch)) for batch in batches])
        card["parts"][name] = _told(folder / name)
        _write_card(folder, card)
        done += sum(map(len, batches))
    return done


def _parts(num_examples: int, batch_size: int) -> Iterator[list[range]]:
    step = PART_BATCHES * batch_size
    for start in range(0, num_examples, step):
        stop = min(start + step, num_examples)
        yield [range(first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)]


def _write_part(path: Path, batches: Sequence[tuple[int, Labels, Tensor]]) -> None:
    """Write the labels of some batches, points sorted by example."""
    counts, kept = [], list[Labels]()
    for size, labels, rows in batches:
        order = rows.cpu().argsort(stable=True)
        counts.append(torch.bincount(rows.cpu(), minlength=size))
        kept.append({name: tensor[order] for name, tensor in labels.items()})
    tensors = {name: torch.cat([labels[name] for labels in kept]) for name in kept[0]}
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    half = path.with_suffix(".half")
    save_file({**tensors, OFFSETS: offsets}, half)
    half.replace(path)


def _write_card(folder: Path, card: Mapping[str, Any]) -> None:
    half = folder / f"{CARD_FILE}.half"
    half.write_text(json.dumps(card, indent=1), encoding="utf-8")
    half.replace(folder / CARD_FILE)


def _read_card(folder: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        _ = card["key"], card["parts"], card["batch_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DistillationError(f"{folder} holds no labels ({error!r}); write them again") from error
    return card


def _told(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read_part(folder: Path, name: str, told: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / name
    try:
        found = _told(path)
        if found != told:
            raise DistillationError(
                f"{path} is cut short or damaged (got {found['bytes']} bytes, expected {told['bytes']} of another "
                f"hash); remove {folder} and write the labels again"
            )
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DistillationError(f"{path} cannot be read ({error}); remove {folder} and write them again") from error
    return tensors
