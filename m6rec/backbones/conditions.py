"""Backbones that read under a condition: a vector a row, or a branch, that says what a few of the weights are for it.

What an item is, what a user did, who somebody is: whatever a vector can hold. Whoever has the batch hands its task the
backbone *given* the conditions; nothing is kept from one batch to the next, so that requests under different conditions
may run at the same time. This module knows no tuner, no task, and no way to make a condition.
"""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from m6rec.backbones.base import Backbone, WrappedBackbone
from m6rec.errors import BackboneError
from m6rec.text.batch import TokenBatch


@dataclass(frozen=True)
class Conditions:
    """What the rows of a batch are read under.

    Args:
        vectors: ``[conditions, size]`` the conditions, each once.
        numbers: ``[rows, regions]`` number of the condition of a row's trunk (region 0) and of each of its branches;
            one region alone is the whole row's. -1 = none: read there as by the bare backbone. One row is all rows'.
    """

    vectors: Float[Tensor, "conditions size"]
    numbers: Int[Tensor, "rows regions"]

    def __post_init__(self) -> None:
        least, most = (int(self.numbers.min()), int(self.numbers.max())) if self.numbers.numel() else (-1, -1)
        if least < -1 or most >= len(self.vectors):
            raise BackboneError(f"got condition {max(most, -least)}, expected -1 (none) to {len(self.vectors) - 1}")
        if not bool(self.vectors.isfinite().all()):
            raise BackboneError("got a condition that is not finite, expected numbers; look at what it was made from")

    @classmethod
    def of_rows(cls, vectors: Float[Tensor, "rows size"]) -> "Conditions":
        """Return a condition for each row; a single one is that of all rows."""
        return cls(vectors, torch.arange(len(vectors), device=vectors.device)[:, None])

    @classmethod
    def of_branches(cls, vectors: Float[Tensor, "conditions size"], branches: Int[Tensor, "rows most"]) -> "Conditions":
        """Return a condition for each branch, and none for the trunks, which all branches of a row share.

        Args:
            vectors: the conditions.
            branches: number of the condition of each branch, -1 behind a row's last.
        """
        return cls(vectors, torch.nn.functional.pad(branches, (1, 0), value=-1))

    @cached_property
    def digests(self) -> list[bytes]:
        """A hash of each condition: what is kept under one is found by it, whatever its number is next time."""
        rows = self.vectors.detach().float().cpu().numpy()
        return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]

    def of(self, batch: TokenBatch) -> Int[Tensor, "batch regions"]:
        """Return the numbers of a batch's rows.

        Raises:
            BackboneError: another number of rows.
        """
        if len(self.numbers) not in (1, batch.size):
            raise BackboneError(
                f"got a batch of {batch.size} rows under the conditions of {len(self.numbers)}, expected one a row"
            )
        return self.numbers.to(batch.ids.device).expand(batch.size, -1)


def of_tokens(batch: TokenBatch, since: int = 0) -> Int[Tensor, "batch tokens"]:
    """Return the number of the condition that each token from the column ``since`` on is read under.

    Raises:
        BackboneError: the batch says nothing of conditions, or not of all its branches.
    """
    if batch.conditions is None:
        raise BackboneError("got a batch without conditions, expected backbone.extend(batch), which notes them")
    branches, regions = batch.branches[:, since:], batch.conditions.shape[1]
    if regions == 1:
        return batch.conditions.expand(-1, branches.shape[1])
    if int(branches.max()) >= regions:
        raise BackboneError(
            f"got a batch of {int(branches.max())} branches under the conditions of {regions - 1}, expected as many"
        )
    return batch.conditions.gather(1, branches)


class GivenBackbone(WrappedBackbone):
    """A backbone under conditions each of which reaches its own tokens alone, so that what it reads can be kept apart.

    Attributes:
        conditions: of the batch that it reads.
    """

    conditions: Conditions


class ConditionBackbone(WrappedBackbone):
    """A backbone that can be given conditions; without any it is the bare one, bit for bit.

    Attributes:
        condition_size: width of a condition.
    """

    condition_size: int

    @abstractmethod
    def given(self, conditions: Conditions) -> Backbone:
        """Return a view that reads a batch's rows under their conditions.

        Raises:
            BackboneError: conditions of another width, or in a place that the method cannot condition.
        """

    def check(self, conditions: Conditions) -> None:
        """Refuse conditions of another width.

        Raises:
            BackboneError: they are.
        """
        if (size := conditions.vectors.shape[1]) != self.condition_size:
            raise BackboneError(
                f"got conditions of {size} numbers, expected {self.condition_size}: the tuner's size; make them as in "
                "training"
            )


def given(backbone: Backbone, conditions: Conditions) -> Backbone:
    """Return ``backbone`` given conditions; one that takes none, whatever it is wrapped in, is returned as it is.

    That is how a conditioned backbone is compared with one that is not.
    """
    if isinstance(backbone, ConditionBackbone):
        return backbone.given(conditions)
    if not isinstance(backbone, WrappedBackbone):
        return backbone
    inner = given(backbone.inner, conditions)
    return backbone if inner is backbone.inner else backbone.around(inner)


def condition_size(backbone: Backbone) -> int | None:
    """Return the width of the conditions that a backbone takes, ``None`` = it takes none."""
    if isinstance(backbone, ConditionBackbone):
        return backbone.condition_size
    return condition_size(backbone.inner) if isinstance(backbone, WrappedBackbone) else None
