"""Models that nobody has published: a small one made from a shape, a pretrained one with fewer words or layers.

Both are written as a folder that ``resolve_backbone`` loads. This module knows no corpus beyond its texts.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m6rec.backbones.anatomy import ANATOMIES, part
from m6rec.backbones.base import Backbone
from m6rec.backbones.pretrained import PretrainedBackbone
from m6rec.backbones.shape import Shape
from m6rec.backbones.structure import set_layers, single_stack
from m6rec.errors import BackboneError, ConfigError
from m6rec.text.segments import CONTROL_TOKENS
from m6rec.text.vocabulary import prune_tokenizer, train_tokenizer


def create_model(shape: Shape, texts: Iterable[str], folder: Path, seed: int = 0) -> None:
    """Train a tokenizer on ``texts`` and write it into ``folder`` with a model of random weights.

    Raises:
        DataError: no text.
        ConfigError: the vocabulary does not fit the texts.
    """
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    tokenizer.add_tokens(list(CONTROL_TOKENS), special_tokens=True)
    _write(folder, _random_model(shape, tokenizer, seed), tokenizer)


def prune_model(backbone: Backbone, texts: Iterable[str], folder: Path) -> None:
    """Write a pretrained backbone into ``folder`` with only the word pieces that ``texts`` use.

    Of MiniLM's 22.7 M parameters 11.7 M are rows of words that a shop never writes, and a language model's loss pays
    for each of them at every token.

    Args:
        backbone: bare, of the BERT family; it stays as it is.
        texts: the corpus.
        folder: to write.

    Raises:
        BackboneError: its vocabulary cannot be cut.
    """
    bare = _bare(backbone)
    tokenizer, kept = prune_tokenizer(bare.tokenizer, texts)
    rows = torch.from_numpy(kept)
    _write(folder, _with_tables(bare, lambda table: table[rows]), tokenizer)


def keep_layers(backbone: Backbone, number: int) -> None:
    """Keep some layers of a bare backbone, evenly from the first to the last, in place.

    Raises:
        ConfigError: more layers than there are.
        BackboneError: a family with two stacks.
    """
    stack = single_stack(backbone.model)
    if not 1 <= number <= len(stack):
        raise ConfigError(f"layers: got {number}, expected 1 to {len(stack)}, the layers of {backbone.name}")
    set_layers(backbone.model, [stack[place] for place in np.linspace(0, len(stack) - 1, number).round().astype(int)])
    backbone.num_layers = number


def save_backbone(backbone: Backbone, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a bare backbone as ``save_pretrained`` does, the control tokens' rows in its table.

    What is read back is equal: control rows that stand in a checkpoint are taken from there.

    Args:
        backbone: bare, or fully tuned.
        folder: to write; what was there is replaced.
        dtype: what the weights are stored in, which is not what they compute in: a reader gets float32.

    Raises:
        BackboneError: the backbone is wrapped: what a tuner has put into it belongs to its adapter.
    """
    bare = _bare(backbone)
    _write(folder, _with_tables(bare, lambda table: table), bare.tokenizer, dtype)


def _bare(backbone: Backbone) -> PretrainedBackbone:
    if not isinstance(backbone, PretrainedBackbone):
        raise _tuned(backbone)
    return backbone


def _tuned(backbone: Backbone) -> BackboneError:
    return BackboneError(
        f"got {backbone.name} with a tuner's parts in it, expected a bare model; use tuner.name=full, or go on from "
        "its adapter with start=RUN"
    )


def _random_model(shape: Shape, tokenizer: Any, seed: int) -> nn.Module:
    """Return the family's model with the weights that it starts pretraining with."""
    import transformers

    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = transformers.AutoConfig.for_model(
        shape.model_type, vocab_size=len(tokenizer), **shape.settings(), **special
    )
    auto = getattr(transformers, ANATOMIES[shape.model_type].auto)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = auto.from_config(config, **_without_pooler(shape.model_type))
    return model


def _without_pooler(model_type: str) -> dict[str, Any]:
    """Return what keeps the library from adding a layer that nobody reads."""
    return {"add_pooling_layer": False} if ANATOMIES[model_type].family == "encoder" else {}


def _with_tables(bare: PretrainedBackbone, rows: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return the model again, with ``rows`` of its table of words and control tokens (and of an untied head).

    Args:
        bare: stays as it is.
        rows: table (words, then the control tokens) -> the rows to keep.
    """
    model: Any = bare.model
    words = part(model, bare.anatomy.tokens).weight
    with torch.no_grad():
        tables = {
            name: rows(torch.cat([tensor[: bare.first_control], bare.control.to(tensor.dtype)]))
            for name, tensor in model.state_dict().items()
            if tensor.data_ptr() == words.data_ptr() or name == f"{bare.anatomy.head}.weight"
        }
    size = len(next(iter(tables.values())))
    config = type(model.config).from_dict({**model.config.to_dict(), "vocab_size": size})
    again: nn.Module = type(model)(config, **_without_pooler(config.model_type))
    if again.state_dict().keys() != model.state_dict().keys():
        raise _tuned(bare)
    again.load_state_dict({**model.state_dict(), **tables})
    return again


def _write(folder: Path, model: Any, tokenizer: Any, dtype: torch.dtype | None = None) -> None:
    """Write model and tokenizer, all or nothing: several processes may do it at once, and write the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        temporary.mkdir(exist_ok=True)
        with _quiet():
            model.to(dtype or next(model.parameters()).dtype).save_pretrained(temporary)
        if dtype is not None:
            _compute_in_float32(temporary / "config.json")
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        if not (folder / "config.json").is_file():
            raise BackboneError(
                f"got no model written to {folder} ({error}); free the place, or name another"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep a bar over the one file of a small model off the screen."""
    from transformers.utils import logging as library

    bar = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if bar:
            library.enable_progress_bar()


def _compute_in_float32(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
