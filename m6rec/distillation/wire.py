"""Tensors and a few words as bytes, for pipes, actors and HTTP alike: safetensors, of which nothing is unpickled.

This module knows no task, teacher or transport.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from m6rec.errors import DistillationError

# safetensors: the header's length in eight little-endian bytes, the header as JSON, the tensors.
_LENGTH_BYTES = 8


def pack(tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> bytes:
    """Return tensors and words as one message.

    >>> unpack(pack({"x": torch.ones(2)}, {"version": "a"}))
    ({'x': tensor([1., 1.])}, {'version': 'a'})
    """
    # Copies: safetensors refuses tensors that share memory, and some of a batch's do.
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return bytes(save(own, dict(words)))


def unpack(message: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what :func:`pack` was given.

    Raises:
        DistillationError: no such message, or one that is cut short.
    """
    try:
        size = int.from_bytes(message[:_LENGTH_BYTES], "little")
        header = json.loads(message[_LENGTH_BYTES : _LENGTH_BYTES + size])
        return load(message), dict(header.get("__metadata__", {}))
    except (SafetensorError, ValueError, AttributeError) as error:
        raise DistillationError(
            f"got {len(message)} bytes that are no message of tensors ({error}), expected safetensors; "
            "run the same version of m6rec on both sides"
        ) from error


def flatten(batch: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return a batch (a dataclass of tensors and of such dataclasses) as tensors with dotted names; none = left out."""
    tensors: dict[str, Tensor] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            tensors[prefix + field.name] = value
        elif value is not None:
            tensors |= flatten(value, f"{prefix}{field.name}.")
    return tensors


def rebuild(kind: type, tensors: Mapping[str, Tensor], prefix: str = "") -> Any:
    """Return the batch of class ``kind`` that :func:`flatten` was given.

    Raises:
        DistillationError: a tensor is missing.
    """
    hints, values = typing.get_type_hints(kind), dict[str, Any]()
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values[field.name] = rebuild(hint, tensors, f"{name}.")
        elif name in tensors:
            values[field.name] = tensors[name]
        elif field.default is dataclasses.MISSING:
            raise DistillationError(
                f"got a batch without {name!r}, expected {kind.__name__}; teacher and student run other tasks"
            )
    return kind(**values)
