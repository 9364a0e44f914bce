"""What PEFT's methods share: attach, save in PEFT's own format, load with every check, detach.

This module knows no method and no family.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from m6rec.backbones.anatomy import Anatomy, anatomy_of
from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners.state import Snapshot, attached, read_control, read_tensors, save_control, seeded, trained_parameters

_TASKS = {"encoder": "FEATURE_EXTRACTION", "causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
# Fields of adapter_config.json that may differ between what is saved and what is attached: they change no output.
_FREE_FIELDS = {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "lora_dropout"}


class PeftTuner:
    """One method of PEFT: base of the tuners in ``peft.py``, which differ in their config and in what they wrap.

    Args:
        config: the method's settings, a dataclass whose ``peft(anatomy)`` returns PEFT's own config for a family.

    Attributes:
        tuned: the tuned backbone, while attached.
    """

    tuned: Backbone
    Config: ClassVar[type[Any]]
    method: ClassVar[str]

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        self._before: Snapshot | None = None
        self._peft: Any = None

    def attach(self, backbone: Backbone) -> Backbone:
        """Put the adapter in; return the tuned backbone.

        Raises:
            TunerError: the method cannot work on this family, or another tuner holds the backbone.
        """
        import peft

        anatomy = anatomy_of(backbone.model.config)
        settings = self._settings(anatomy)
        before = Snapshot.take(backbone)
        try:
            with seeded(getattr(self.config, "seed", 0)), _quiet():
                self._peft = peft.get_peft_model(backbone.model, settings)
        except ValueError as error:
            before.restore()
            raise TunerError(f"PEFT cannot put {self.method} on {backbone.name}: {error}") from error
        self._before = before
        backbone.control.requires_grad_(True)
        self.tuned = self._wrap(backbone)
        return self.tuned

    def _settings(self, anatomy: Anatomy) -> Any:
        settings = self.config.peft(anatomy)
        settings.task_type = _TASKS[anatomy.family]
        return settings

    def _wrap(self, backbone: Backbone) -> Backbone:
        return backbone  # PEFT has changed the model's own modules in place: the walk meets them there

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the adapter's parameters and the control tokens' rows."""
        attached(self._before)
        return trained_parameters(self.tuned)

    def save(self, folder: Path) -> None:
        """Write PEFT's own files, and ``control_tokens.safetensors`` beside them."""
        before = attached(self._before)
        # Never ask the Hub whether the vocabulary has grown: ours never does.
        self._peft.save_pretrained(str(folder), save_embedding_layers=False)
        save_control(before.backbone, folder, self.method)

    def load(self, folder: Path) -> None:
        """Read an adapter into the attached one; nothing changes unless all of it fits.

        Raises:
            TunerError: it is of another method, base model or setting, or damaged.
        """
        from peft.utils import set_peft_model_state_dict

        backbone = attached(self._before).backbone
        control = read_control(backbone, folder, self.method)
        _check_settings(folder, self._peft.peft_config["default"].to_dict())
        tensors, _ = read_tensors(folder / "adapter_model.safetensors")
        _check_shapes(folder, tensors, self._state())
        self._before_load()
        set_peft_model_state_dict(self._peft, tensors)
        with torch.no_grad():
            backbone.control.copy_(control)

    def _before_load(self) -> None:
        return

    def _state(self) -> dict[str, Tensor]:
        from peft.utils import get_peft_model_state_dict

        return get_peft_model_state_dict(self._peft, save_embedding_layers=False)

    def detach(self) -> Backbone:
        """Take the adapter out and give the backbone back as it was."""
        before = attached(self._before)
        if not self._peft.active_peft_config.is_prompt_learning:  # prompt learning never touches the model itself
            self._peft.unload()
        self._before = self._peft = None
        del self.tuned
        return before.restore()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what PEFT 0.21 says about transformers' names: the user can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _check_settings(folder: Path, own: Mapping[str, Any]) -> None:
    path = folder / "adapter_config.json"
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TunerError(f"{path} is missing or damaged ({error}); copy it again from where it was saved") from error
    differing = [
        f"{name}: got {saved[name]!r}, expected {_plain(own[name])!r}"
        for name in sorted(own.keys() & saved.keys() - _FREE_FIELDS)
        if _plain(saved[name]) != _plain(own[name])
    ]
    if differing:
        raise TunerError(
            f"{folder} holds an adapter with other settings; attach a tuner with these: {'; '.join(differing)}"
        )


def _plain(value: Any) -> Any:
    """Return a setting as JSON gives it back, with sets (and what was one) in order."""
    if isinstance(value, set | list | tuple):
        return sorted(map(str, value))
    return getattr(value, "value", value)


def _check_shapes(folder: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    odd = [name for name in sorted(found.keys() | own.keys()) if _shape(found, name) != _shape(own, name)]
    if odd:
        raise TunerError(
            f"got {odd[0]} of shape {_shape(found, odd[0])} in {folder}, expected {_shape(own, odd[0])}; "
            "load the backbone and the settings that the adapter was trained with"
        )


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
