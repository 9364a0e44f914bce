"""The hash of some weights. This module knows no model."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of tensors: of their names, shapes, types and bits, in the order of the names.

    >>> ones = torch.ones(2)
    >>> digest_of([("a", ones), ("b", ones)]) == digest_of([("b", ones), ("a", ones.clone())])
    True
    >>> digest_of([("a", ones)]) == digest_of([("a", ones.half())])
    False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # A number alone has no bytes to be viewed as, a list of one has.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
