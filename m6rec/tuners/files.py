"""The files of an adapter's folder: settings, tensors and control rows, each checked before anything is changed.

PEFT's own names: ``adapter_config.json`` and ``adapter_model.safetensors``; beside them ``control_tokens.safetensors``,
whose card names the method and the base model's weights. This module knows no method.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.config import plain
from m6rec.errors import TunerError
from m6rec.text.segments import CONTROL_TOKENS

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"
CONTROL_FILE = "control_tokens.safetensors"


def save_control(backbone: Backbone, folder: Path, method: str, config: Any = None) -> None:
    """Write the control tokens' rows into ``folder``, with a card that says what made them.

    Args:
        backbone: whose rows, and whose fingerprint.
        folder: made where it is missing.
        method: shelf name of the tuner.
        config: the tuner's settings, so that the adapter opens without its recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card = {"method": method, "fingerprint": backbone.fingerprint, "tokens": json.dumps(CONTROL_TOKENS)}
    if config is not None:
        card["settings"] = json.dumps(lasting_settings(config))
    save_file({"control": backbone.control.detach().cpu().contiguous()}, folder / CONTROL_FILE, metadata=card)


def lasting_settings(config: Any) -> dict[str, Any]:
    """Return a tuner's settings as an adapter keeps them: without ``start``, which may name a folder of this machine.

    Where trained rows started plays no part once they are trained.
    """
    return {name: value for name, value in plain(config).items() if name != "start"}


@dataclass(frozen=True)
class AdapterCard:
    """What a saved adapter says of itself.

    Args:
        method: shelf name of the tuner that made it.
        fingerprint: hash of the pretrained weights that it was trained on.
        settings: the tuner's settings; empty in an adapter that was saved before they were written down.
    """

    method: str
    fingerprint: str
    settings: dict[str, Any]


def read_adapter_card(folder: Path) -> AdapterCard:
    """Return what the adapter in ``folder`` says of itself.

    Raises:
        TunerError: no adapter of ours there, or a damaged one.
    """
    _, card = read_tensors(folder / CONTROL_FILE)
    try:
        return AdapterCard(card["method"], card["fingerprint"], json.loads(card.get("settings", "{}")))
    except (KeyError, ValueError) as error:
        raise TunerError(
            f"{folder / CONTROL_FILE} is damaged (its card has no readable {error}); copy it again from where it was "
            "saved"
        ) from error


def read_control(backbone: Backbone, folder: Path, method: str) -> Float[Tensor, "4 hidden"]:
    """Return the control tokens' rows that ``folder`` holds for ``backbone``.

    Raises:
        TunerError: missing or damaged, or of another method or base model.
    """
    tensors, card = read_tensors(folder / CONTROL_FILE)
    if card.get("method") != method:
        raise TunerError(
            f"got an adapter of method {card.get('method')!r} in {folder}, expected {method!r}; "
            "use the tuner that saved it"
        )
    rows = tensors.get("control")
    if rows is None or rows.shape != backbone.control.shape:
        shape = None if rows is None else tuple(rows.shape)
        raise TunerError(
            f"got control rows of shape {shape} in {folder}, expected {tuple(backbone.control.shape)}; "
            "load the backbone that the adapter was trained on"
        )
    if card.get("fingerprint") != backbone.fingerprint:
        raise TunerError(
            f"got an adapter trained on the weights {str(card.get('fingerprint'))[:12]} in {folder}, expected "
            f"{backbone.fingerprint[:12]} ({backbone.name}); load the backbone that the adapter was trained on"
        )
    return rows


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors and its metadata.

    Raises:
        TunerError: missing, truncated or not a safetensors file.
    """
    if not path.is_file():
        raise TunerError(f"{path} is missing; expected a folder that a tuner has saved")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TunerError(f"{path} is damaged ({error}); copy it again from where it was saved") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return what ``adapter_config.json`` in ``folder`` holds.

    Raises:
        TunerError: missing or damaged.
    """
    path = folder / CONFIG_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TunerError(f"{path} is missing or damaged ({error}); copy it again from where it was saved") from error
    if not isinstance(saved, dict):
        raise TunerError(f"{path} is damaged (it holds no mapping); copy it again from where it was saved")
    return saved


def check_settings(folder: Path, saved: Mapping[str, Any], own: Mapping[str, Any], free: Collection[str]) -> None:
    """Hold an adapter's saved settings against the attached one's.

    Args:
        folder: where it was saved, for the message.
        saved: as JSON gives them; settings that one side does not know are left out.
        own: of the attached tuner.
        free: settings that may differ, for they change no output.

    Raises:
        TunerError: some differ.
    """
    differing = [
        f"{name}: got {saved[name]!r}, expected {_plain(own[name])!r}"
        for name in sorted((own.keys() & saved.keys()) - set(free))
        if (sorted(saved[name]) if isinstance(own[name], set) else saved[name]) != _plain(own[name])
    ]
    if differing:
        raise TunerError(
            f"{folder} holds an adapter with other settings; attach a tuner with these: {'; '.join(differing)}"
        )


def _plain(value: Any) -> Any:
    """Return a setting as JSON gives it back, a set in order."""
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, tuple):
        return list(value)
    return getattr(value, "value", value)


def check_shapes(folder: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Hold an adapter's tensors against the attached one's.

    Raises:
        TunerError: a name is missing or too much, or a shape differs.
    """
    odd = [name for name in sorted(found.keys() | own.keys()) if _shape(found, name) != _shape(own, name)]
    if odd:
        raise TunerError(
            f"got {odd[0]} of shape {_shape(found, odd[0])} in {folder}, expected {_shape(own, odd[0])}; "
            "load the backbone and the settings that the adapter was trained with"
        )


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
