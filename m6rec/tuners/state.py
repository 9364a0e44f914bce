"""What the tuners share: the backbone as it was, what is trained, and the control tokens' file.

This module knows no method.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.config import plain
from m6rec.errors import TunerError
from m6rec.text.segments import CONTROL_TOKENS

CONTROL_FILE = "control_tokens.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """A backbone as it was before a tuner came.

    Args:
        backbone: the backbone.
        trained: the parameters that required gradients.
        control: a copy of the control tokens' rows.
    """

    backbone: Backbone
    trained: tuple[nn.Parameter, ...]
    control: Float[Tensor, "4 hidden"]

    @staticmethod
    def take(backbone: Backbone) -> "Snapshot":
        """Remember ``backbone`` and freeze all of it.

        Raises:
            TunerError: another tuner holds it.
        """
        if getattr(backbone.model, "peft_config", None):
            raise TunerError(
                "got a backbone that carries an adapter, expected a bare one; detach the other tuner first"
            )
        _ = backbone.fingerprint  # taken now: training may change the weights that it names
        trained = tuple(parameter for parameter in backbone.parameters() if parameter.requires_grad)
        backbone.requires_grad_(False)
        return Snapshot(backbone, trained, backbone.control.detach().clone())

    def restore(self) -> Backbone:
        """Give the backbone back with its control rows and gradient flags as they were."""
        self.backbone.requires_grad_(False)
        for parameter in self.trained:
            parameter.requires_grad_(True)
        with torch.no_grad():
            self.backbone.control.copy_(self.control)
        return self.backbone


def attached(before: Snapshot | None) -> Snapshot:
    """Return what a tuner remembers of its backbone.

    Raises:
        TunerError: it is not attached.
    """
    if before is None:
        raise TunerError("got a tuner that is not attached, expected attach(backbone) before anything else; call it")
    return before


def trained_parameters(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name."""
    return {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class TrainedShare:
    """How much of a backbone is trained.

    Args:
        trained: number of trained parameters.
        total: number of all parameters, the tuner's own included.
    """

    trained: int
    total: int

    @property
    def percent(self) -> float:
        """Trained parameters in percent of all."""
        return 100 * self.trained / max(1, self.total)

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.total:,} parameters trained ({self.percent:.2f} %)"


def trained_share(backbone: nn.Module) -> TrainedShare:
    """Count what is trained in a tuned backbone (or in any module)."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in backbone.parameters()]
    return TrainedShare(sum(size for size, on in counts if on), sum(size for size, _ in counts))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from ``seed`` inside, and leave the generator outside as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


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
        card["settings"] = json.dumps(plain(config))
    save_file({"control": backbone.control.detach().cpu().contiguous()}, folder / CONTROL_FILE, metadata=card)


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
