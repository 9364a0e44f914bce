"""A hypernetwork from a condition to what modulates a frozen backbone: weights of its own for each row or branch.

This module knows no way to make a condition: an item's text, a user's pooled events, a profile are vectors to it.
"""

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.backbones.cache import LayerCache
from m6rec.backbones.conditions import ConditionBackbone, Conditions, GivenBackbone, of_tokens
from m6rec.errors import BackboneError, ConfigError, TunerError
from m6rec.nn.modulation import OPS, Hypernetwork, Op, low_rank, modulate
from m6rec.text.batch import TokenBatch
from m6rec.tuners.inserted import InsertedTuner
from m6rec.tuners.start import StartConfig, starting_rows
from m6rec.tuners.virtual import PromptedBackbone


@dataclass(frozen=True)
class ConditionedConfig:
    """Settings of the conditioned tuner; all change results."""

    form: Literal["modulation", "lora", "prompt"] = "modulation"
    """What the condition makes: operands that modulate the states behind every layer, factors of a low-rank map beside
    every layer, or rows that are read before the text (of whole rows alone: a trunk is read once for all branches)."""
    size: int | None = None
    """Numbers of a condition; null = as many as the backbone's states have, for pooled states are the usual one."""
    width: int = 64
    """Hidden units of the hypernetwork."""
    ops: tuple[str, ...] = ("mul+add",)
    """What `modulation` does behind each layer, of max, min, mul and add in this order, e.g. `mul+add` (FiLM) or
    `max+add`, empty = nothing; one entry = the same behind all layers."""
    gated: bool = False
    """Whether each operation behind each layer has a trained gate from 0 (states as they are) to 1, as in a search."""
    rank: int = 4
    """Of the `lora` form."""
    num_virtual_tokens: int = 8
    """Of the `prompt` form."""
    seed: int = 0
    """Seed of the random start."""

    def __post_init__(self) -> None:
        least = {"width": self.width, "rank": self.rank, "num_virtual_tokens": self.num_virtual_tokens}
        if self.size is not None:
            least["size"] = self.size
        if wrong := [f"{name}: got {value}, expected 1 or more" for name, value in least.items() if value < 1]:
            raise ConfigError("; ".join(wrong))
        for entry in self.ops:
            read_ops(entry)


def read_ops(entry: str) -> tuple[Op, ...]:
    """Return the operations in an entry of ``ops``.

    Raises:
        ConfigError: one that is none, or another order.

    >>> read_ops("mul+add"), read_ops("")
    (('mul', 'add'), ())
    """
    names = tuple(entry.split("+")) if entry else ()
    if names != tuple(op for op in OPS if op in names):
        raise ConfigError(f"ops: got {entry!r}, expected some of {'+'.join(OPS)}, each once and in this order")
    return cast(tuple[Op, ...], names)


class Modulation(nn.Module):
    """Operands of a condition, applied one after the other to the states behind a layer.

    ``max`` and ``min`` have a trained strength that starts at zero: an operand far enough away to change nothing at the
    start would get no gradient ever.

    Args:
        ops: of each layer.
        hidden: width of the states.
        gated: whether every operation has a gate.
    """

    def __init__(self, ops: tuple[tuple[Op, ...], ...], hidden: int, gated: bool) -> None:
        super().__init__()
        self.ops, self.hidden, self.gated = ops, hidden, gated
        self.sizes = [len(names) * hidden for names in ops]
        scaled = [(index, op) for index, names in enumerate(ops) for op in names if gated or op in ("max", "min")]
        self.gates = nn.ParameterDict({f"{op}-{index}": nn.Parameter(torch.zeros(())) for index, op in scaled})

    def start(self, bias: Float[Tensor, " numbers"]) -> None:
        """Leave the hypernetwork's bias at zero: no change."""

    def strength(self, index: int, op: Op) -> Float[Tensor, ""] | None:
        """Return how far an operation goes behind a layer; ``None`` = all the way."""
        if f"{op}-{index}" not in self.gates:
            return None
        gate = self.gates[f"{op}-{index}"]
        return gate.sigmoid() if self.gated else gate

    def forward(
        self,
        index: int,
        before: Float[Tensor, "batch tokens hidden"],
        after: Float[Tensor, "batch tokens hidden"],
        numbers: Float[Tensor, "batch tokens _"],
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Return the states behind layer ``index``, modulated."""
        operands = numbers.to(after.dtype).unflatten(-1, (len(self.ops[index]), self.hidden)).unbind(-2)
        for op, operand in zip(self.ops[index], operands, strict=True):
            strength = self.strength(index, op)
            after = modulate(after, op, operand, None if strength is None else strength.to(after.dtype))
        return after


class LowRank(nn.Module):
    """Low-rank maps of a condition, each beside a layer: what goes into it, mapped, is added to what comes out.

    Args:
        num_layers: how many.
        hidden: width of the states.
        rank: of each map.
    """

    def __init__(self, num_layers: int, hidden: int, rank: int) -> None:
        super().__init__()
        self.num_layers, self.hidden, self.rank = num_layers, hidden, rank
        self.sizes = [2 * rank * hidden] * num_layers

    def start(self, bias: Float[Tensor, " numbers"]) -> None:
        """Start the hypernetwork's bias as LoRA starts: one factor at random, the other at zero."""
        down = bias.view(self.num_layers, 2, -1)[:, 0]
        nn.init.normal_(down, std=self.hidden**-0.5)

    def forward(
        self,
        index: int,
        before: Float[Tensor, "batch tokens hidden"],
        after: Float[Tensor, "batch tokens hidden"],
        numbers: Float[Tensor, "batch tokens _"],
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Return the states behind layer ``index`` with the map's share."""
        down, up = numbers.to(before.dtype).unflatten(-1, (2, self.rank, self.hidden)).unbind(-3)
        return after + low_rank(before, down, up).to(after.dtype)


class ConditionedBackbone(ConditionBackbone):
    """A frozen backbone with a hypernetwork beside it, which does nothing until conditions are given.

    Args:
        inner: the frozen backbone.
        hypernetwork: condition -> numbers.
        change: what the numbers do behind each layer; ``None`` = they are rows before the text.
        size: of a condition.
        num_virtual_tokens: how many such rows.
    """

    def __init__(
        self,
        inner: Backbone,
        hypernetwork: Hypernetwork,
        change: Modulation | LowRank | None,
        size: int,
        num_virtual_tokens: int = 0,
    ) -> None:
        super().__init__(inner)
        self.hypernetwork, self.change = hypernetwork, change
        self.condition_size, self.num_virtual_tokens = size, num_virtual_tokens
        self.max_tokens = inner.max_tokens - num_virtual_tokens
        self.train(inner.training)

    def given(self, conditions: Conditions) -> Backbone:
        """Return a view that reads a batch's rows under their conditions.

        Raises:
            BackboneError: conditions of another width, or prompts for branches.
        """
        self.check(conditions)
        parts = self.hypernetwork(conditions.vectors.to(self.control.device))
        if self.change is None:
            return PromptedUnder(self.inner, parts[0], self.num_virtual_tokens, conditions)
        return ChangedUnder(self.inner, self.change, parts, conditions)


class ChangedUnder(GivenBackbone):
    """A frozen backbone whose states each layer's change moves, for every token under its own condition.

    The number of each row's condition travels with the batch (``TokenBatch.conditions``), so that rows may be kept,
    repeated and dropped while a text is written. What a token of the coming layers stands under is noted when their
    mask is made, which is once before every walk; hence a view of its own for every batch.

    Args:
        inner: the frozen backbone.
        change: the form.
        parts: numbers of every condition, a part a layer.
        conditions: what they were made from.
    """

    def __init__(
        self,
        inner: Backbone,
        change: Modulation | LowRank,
        parts: tuple[Float[Tensor, "conditions _"], ...],
        conditions: Conditions,
    ) -> None:
        super().__init__(inner)
        self.change, self.conditions = change, conditions
        # A row of zeros for tokens under no condition, where -1 finds it.
        self._parts = tuple(F.pad(part, (0, 0, 0, 1)) for part in parts)
        self._numbers = torch.empty(0, 0, dtype=torch.int64)

    def extend(self, batch: TokenBatch) -> TokenBatch:
        """Return ``batch`` with what is read before every text, and with its conditions."""
        return replace(self.inner.extend(batch), conditions=self.conditions.of(batch))

    def mask(self, batch: TokenBatch, since: int = 0) -> Float[Tensor, "batch 1 tokens keys"]:
        """Return the additive mask, and note what its tokens stand under.

        Raises:
            BackboneError: the batch does not say.
        """
        self._numbers = of_tokens(batch, since)
        return self.inner.mask(batch, since)

    def layer(
        self,
        index: int,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Float[Tensor, "batch 1 tokens keys"],
        positions: Int[Tensor, "batch tokens"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Apply layer ``index``, then its change."""
        after = self.inner.layer(index, hidden, mask, positions, cache)
        if not self._parts[index].shape[1]:
            return after
        changed = self.change(index, hidden, after, self._parts[index][self._numbers])
        return torch.where((self._numbers >= 0).unsqueeze(-1), changed, after)


class PromptedUnder(PromptedBackbone):
    """A frozen backbone that reads, before every row, the rows that its condition gives.

    A virtual token's id says of which condition it is.

    Args:
        inner: the frozen backbone.
        rows: of every condition, one behind the other.
        num_tokens: how many each.
        conditions: what they were made from.

    Raises:
        BackboneError: conditions of branches, or a row without one.
    """

    def __init__(
        self, inner: Backbone, rows: Float[Tensor, "conditions _"], num_tokens: int, conditions: Conditions
    ) -> None:
        if conditions.numbers.shape[1] != 1 or bool((conditions.numbers < 0).any()):
            raise BackboneError(
                "got conditions of branches, or rows without one, for form=prompt, expected one for every whole row: "
                "what stands before a text is read by all of it; take form=modulation or lora"
            )
        super().__init__(inner, nn.Identity(), num_tokens)
        self.conditions, self._rows = conditions, rows.view(-1, inner.hidden_size)

    def prompt(self) -> Float[Tensor, "virtual hidden"]:
        """Return the rows of all conditions."""
        return self._rows

    def extend(self, batch: TokenBatch) -> TokenBatch:
        """Return ``batch`` with its conditions' virtual tokens at the head of every trunk."""
        whole, shift = super().extend(batch), self.conditions.of(batch) * self.num_tokens
        lead = whole.ids[:, : self.num_tokens] + shift
        return replace(whole, ids=torch.cat([lead, whole.ids[:, self.num_tokens :]], dim=1))


class ConditionedTuner(InsertedTuner):
    """A hypernetwork beside a frozen backbone: what modulates it depends on a condition, one for each row or branch.

    The only tuner whose change is another for every item or user, at the price of one small forward pass. Its bias is
    what all conditions have in common, so that it tunes as a plain one does besides.

    Source: FiLM (arXiv 1709.07871), section 2; HyperNetworks (arXiv 1609.09106); for users ColdNAS (arXiv 2306.03387)
        and TaNP (arXiv 2103.06137), for items EmerG (arXiv 2407.10112), whose conditions these are.
    Differs: behind the layers of a language model instead of an MLP's; a scale is ``1 + p``; a branch of a tree can
        have a condition of its own over a trunk that has none, so that a user is read once for all candidates.
    """

    Config = ConditionedConfig
    method = "conditioned"

    def insert(self, backbone: Backbone) -> Backbone:
        """Put a hypernetwork beside the backbone.

        Raises:
            TunerError: operations for another number of layers, or no room for the virtual tokens.
        """
        config, count = self.config, self.config.num_virtual_tokens
        size = config.size or backbone.hidden_size
        if config.form == "prompt":
            if count >= backbone.max_tokens:
                raise TunerError(
                    f"num_virtual_tokens: got {count}, expected less than the {backbone.max_tokens} tokens that "
                    f"{backbone.name} reads; set another number"
                )
            hypernetwork = Hypernetwork(size, config.width, [count * backbone.hidden_size])
            with torch.no_grad():
                hypernetwork.outer.bias.copy_(starting_rows(backbone, StartConfig(), count).flatten())
            return ConditionedBackbone(backbone, hypernetwork, None, size, count)
        change = self._change(backbone)
        hypernetwork = Hypernetwork(size, config.width, change.sizes)
        with torch.no_grad():
            change.start(hypernetwork.outer.bias)
        return ConditionedBackbone(backbone, hypernetwork, change, size)

    def _change(self, backbone: Backbone) -> Modulation | LowRank:
        config, layers = self.config, backbone.num_layers
        if config.form == "lora":
            return LowRank(layers, backbone.hidden_size, config.rank)
        ops = tuple(map(read_ops, config.ops)) * (layers if len(config.ops) == 1 else 1)
        if len(ops) != layers or not any(ops):
            raise TunerError(
                f"ops: got {len(config.ops)} entries, expected one for each of the {layers} layers of {backbone.name}, "
                "or one for all, and an operation somewhere"
            )
        return Modulation(ops, backbone.hidden_size, config.gated)
