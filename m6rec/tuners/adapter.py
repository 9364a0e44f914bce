"""What PEFT's methods share: attach, save in PEFT's own format, load with every check, detach.

This module knows no method and no family.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from m6rec.backbones.anatomy import Anatomy, anatomy_of
from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners.files import (
    TENSORS_FILE,
    check_settings,
    check_shapes,
    read_config,
    read_control,
    read_tensors,
    save_control,
)
from m6rec.tuners.state import Snapshot, attached, seeded, trained_parameters, unattached

_TASKS = {
    "encoder": "FEATURE_EXTRACTION",
    "causal": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "convolution": "FEATURE_EXTRACTION",
}
# Fields of adapter_config.json that may differ between what is saved and what is attached: they change no output.
_FREE_FIELDS = {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "lora_dropout"}


class PeftTuner:
    """One method of PEFT: base of the tuners that differ in their config and in what they wrap.

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
            TunerError: the method cannot work on this family, another tuner holds the backbone, or this one is in use.
        """
        import peft

        unattached(self._before)
        anatomy = anatomy_of(backbone.model.config)
        settings = self._settings(anatomy)
        before = Snapshot.take(backbone)
        try:
            with seeded(getattr(self.config, "seed", 0)), _quiet():
                self._peft = peft.get_peft_model(backbone.model, settings)
            self.tuned = self._wrap(backbone)
        except Exception as error:
            before.restore()
            if isinstance(error, ValueError):
                raise TunerError(f"PEFT cannot put {self.method} on {backbone.name}: {error}") from error
            raise
        self._before = before
        backbone.control.requires_grad_(True)
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
        save_control(before.backbone, folder, self.method, self.config)

    def load(self, folder: Path) -> None:
        """Read an adapter into the attached one; nothing changes unless all of it fits.

        Raises:
            TunerError: it is of another method, base model or setting, or damaged.
        """
        from peft.utils import set_peft_model_state_dict

        backbone = attached(self._before).backbone
        control = read_control(backbone, folder, self.method)
        check_settings(folder, read_config(folder), self._peft.peft_config["default"].to_dict(), _FREE_FIELDS)
        tensors, _ = read_tensors(folder / TENSORS_FILE)
        check_shapes(folder, tensors, self._state())
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
    """Hide what PEFT 0.21 says that the user can do nothing about: transformers' names, norms, no merging of biases."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Unsupported layer type .*Norm'", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*you cannot merge the BEFT adapter", category=UserWarning)
        yield


def target_names(names: tuple[str, ...]) -> str | list[str] | None:
    """Return the names of matrices as PEFT takes them: ``None`` = its own choice for the family."""
    return "all-linear" if names == ("all-linear",) else list(names) or None
