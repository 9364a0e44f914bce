"""What our own methods share: put modules into a frozen backbone, save and load them with every check, take them out.

The counterpart of ``adapter.py``, which does the same for PEFT's. This module knows no method and no family: where a
module can be put is said by ``Backbone.sites``.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import nn

from m6rec.backbones.base import Backbone
from m6rec.backbones.sites import Sites
from m6rec.errors import TunerError
from m6rec.tuners.files import (
    CONFIG_FILE,
    TENSORS_FILE,
    check_settings,
    check_shapes,
    lasting_settings,
    read_config,
    read_control,
    read_tensors,
    save_control,
)
from m6rec.tuners.state import Snapshot, attached, seeded, trained_parameters, unattached

METHOD_KEY = "m6rec_tuner"
"""What stands in our ``adapter_config.json`` where PEFT's has ``peft_type``."""


class Wrapper(nn.Module):
    """A module in the place of another one, which it calls ``base_layer``, as PEFT's do.

    Whatever the wrapper has not got is the base layer's: T5 asks its projection for the dtype of its weight.

    Args:
        base_layer: what it replaces.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def __getattr__(self, name: str) -> Any:
        """Look in the base layer for what the wrapper has not got."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not set yet: asking the base layer for it would never end
                raise
            return getattr(self.base_layer, name)


class InsertedTuner(ABC):
    """One method of ours: base of the tuners that put trained modules into a backbone or around it.

    A subclass names its ``Config`` and ``method``, and says in ``insert`` what goes where. All else is here: the rest
    of the backbone frozen, the control tokens' rows trained, the folder, and the way back. What is inserted should be
    float32, whatever the backbone is stored in, and add nothing at the start where the method allows it.

    Args:
        config: the method's settings.

    Attributes:
        tuned: the tuned backbone, while attached.
        chosen: settings that ``insert`` has chosen itself (a width from a budget), saved in place of the config's.
    """

    tuned: Backbone
    Config: ClassVar[type[Any]]
    method: ClassVar[str]
    free_settings: ClassVar[frozenset[str]] = frozenset({"seed", "answers"})
    """Settings that play no part once the modules are trained: an adapter may be loaded though they differ."""

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        self._before: Snapshot | None = None
        self.chosen: dict[str, Any] = {}
        self._replaced: dict[str, nn.Module] = {}
        self._frozen: set[nn.Parameter] = set()

    @abstractmethod
    def insert(self, backbone: Backbone) -> Backbone:
        """Put the method's modules in with ``put``; return the backbone, or a wrapper around it.

        Raises:
            TunerError: the method cannot work on this backbone.
        """

    def put(self, backbone: Backbone, path: str, wrap: Callable[[nn.Module], Wrapper]) -> None:
        """Replace the module at ``path`` of the model by a wrapper around it, and remember it.

        Args:
            backbone: as ``insert`` got it.
            path: one of ``backbone.sites()``; a module inside another comes before it.
            wrap: base layer -> wrapper.
        """
        base_layer = backbone.model.get_submodule(path)
        self._replaced.setdefault(path, base_layer)
        _replace(backbone.model, path, wrap(base_layer).train(base_layer.training))

    def attach(self, backbone: Backbone) -> Backbone:
        """Put the modules in; return the tuned backbone.

        Raises:
            TunerError: the method cannot work on this backbone, another tuner holds it, or this one is in use.
        """
        unattached(self._before)
        before = self._before = Snapshot.take(backbone)
        self._frozen = set(backbone.parameters())
        try:
            with seeded(getattr(self.config, "seed", 0)):
                self.tuned = self.insert(backbone).to(backbone.control.device)
        except Exception:
            self.tuned = backbone
            self.detach()
            raise
        before.backbone.control.requires_grad_(True)
        return self.tuned

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the inserted modules' parameters and the control tokens' rows, as far as they are trained."""
        attached(self._before)
        return trained_parameters(self.tuned)

    def inserted(self) -> dict[str, nn.Parameter]:
        """Return all that ``insert`` has brought, trained or not, by the name it is saved under."""
        attached(self._before)
        return {
            name.removeprefix("inner.").removeprefix("model."): parameter
            for name, parameter in self.tuned.named_parameters()
            if parameter not in self._frozen
        }

    def settings(self) -> dict[str, Any]:
        """Return the settings to save: those that the inserted modules were made by."""
        return lasting_settings(self.config) | self.chosen

    def save(self, folder: Path) -> None:
        """Write the inserted modules and their settings under PEFT's names, and the control tokens' rows beside."""
        backbone = attached(self._before).backbone
        save_control(backbone, folder, self.method, self.settings())
        base = getattr(backbone.model, "name_or_path", "") or backbone.name
        card = {METHOD_KEY: self.method, "base_model_name_or_path": base, "settings": self.settings()}
        (folder / CONFIG_FILE).write_text(json.dumps(card, ensure_ascii=False, indent=2), encoding="utf-8")
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.inserted().items()}
        save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote into the attached modules; nothing changes unless all of it fits.

        Raises:
            TunerError: it is of another method, base model or setting, or damaged.
        """
        self.take(folder)

    def take(self, folder: Path, free: Collection[str] = (), without: str | None = None) -> None:
        """Read what ``save`` wrote, or a part of it; nothing changes unless all of it fits.

        Args:
            folder: the adapter's.
            free: further settings that may differ.
            without: part of a name; parameters whose name holds it stay as they are.

        Raises:
            TunerError: as :meth:`load`.
        """
        backbone = attached(self._before).backbone
        control = read_control(backbone, folder, self.method)
        check_settings(folder, read_settings(folder, self.method), self.settings(), self.free_settings | set(free))
        tensors, _ = read_tensors(folder / TENSORS_FILE)
        own = self.inserted()
        check_shapes(folder, tensors, own)
        with torch.no_grad():
            for name, parameter in own.items():
                if without is None or without not in name:
                    parameter.copy_(tensors[name])
            backbone.control.copy_(control)

    def detach(self) -> Backbone:
        """Put back what was replaced and give the backbone back as it was."""
        before = attached(self._before)
        for path, base_layer in reversed(self._replaced.items()):
            _replace(before.backbone.model, path, base_layer)
        self._before, self._replaced, self._frozen = None, {}, set()
        del self.tuned
        return before.restore()


def read_settings(folder: Path, method: str) -> dict[str, Any]:
    """Return the settings in an ``adapter_config.json`` of ours.

    Raises:
        TunerError: it is missing or damaged, or of another method.
    """
    card = read_config(folder)
    found, settings = card.get(METHOD_KEY, card.get("peft_type")), card.get("settings")
    if found != method or not isinstance(settings, dict):
        raise TunerError(
            f"got {found!r} as the tuner in {folder / CONFIG_FILE}, expected {method!r} and its settings; use the "
            "tuner that saved it, or copy the file again from where it was saved"
        )
    return settings


def sites_of(backbone: Backbone, method: str) -> list[Sites]:
    """Return a backbone's sites, one a layer.

    Raises:
        TunerError: it has none.
    """
    sites = list(backbone.sites())
    if not sites:
        raise TunerError(
            f"got {backbone.name}, which says nowhere how its layers can be added to, expected a backbone with sites "
            f"for {method}; give it a sites() method (m6rec/backbones/sites.py), or use option, prompt or lora"
        )
    return sites


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
