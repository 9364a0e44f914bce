"""A backbone that can stop at every layer, and the task that trains it to. This module knows no task of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m6rec.backbones.base import Backbone, Head, WrappedBackbone
from m6rec.backbones.scenes import SceneBackbone
from m6rec.compressors.exit_config import ExitConfig
from m6rec.compressors.exit_policy import Judge
from m6rec.errors import BackboneError, ConfigError, RunError
from m6rec.tasks.base import Loss, Task, WrappedTask
from m6rec.text.batch import TokenBatch

EXITS_FILE = "exits.safetensors"


class Exit(nn.Module):
    """From the states of a layer to what the task's own head can read: what is trained of a head at that layer.

    Args:
        width: of the states.

    Differs: M6-Rec does not say what a head at a layer is. A linear change of the states (none at the start) before
        the one head that the task has serves every task, soft options and the language-model head among them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Linear(width, width)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return the changed states."""
        return states + self.change(states)


class ExitingBackbone(WrappedBackbone):
    """A backbone whose walk ends where its budget says, or where an answer is sure.

    At full depth it is the inner backbone, exactly. What has left is taken out of the batch: a candidate's tokens out
    of its user's tree, and the tree once no candidate is left, so that time really falls.

    Args:
        inner: tuned.
        config: depth and policy.

    Attributes:
        depth: layers that are run at most.
        left: how many points have left after each layer since it was made, for whoever asks.

    Raises:
        BackboneError: a family whose lower layers do not read every token, or scenes.
        ConfigError: a depth beyond the model.

    Source: M6-Rec (arXiv 2205.08084), M6-Edge: exits at every layer, depth by the hardware's budget.
    """

    def __init__(self, inner: Backbone, config: ExitConfig) -> None:
        super().__init__(inner)
        if inner.family not in ("encoder", "causal") or isinstance(inner, SceneBackbone):
            kind = "scenes" if isinstance(inner, SceneBackbone) else f"family {inner.family!r}"
            raise BackboneError(
                f"got a backbone of {kind}, expected an encoder or a decoder; "
                "remove exits from the recipe, or choose another backbone"
            )
        self.config, self.left = config, [0] * inner.num_layers
        self.exits = nn.ModuleList(Exit(inner.hidden_size) for _ in range(inner.num_layers - 1))
        self.to(inner.control.device)
        self.set(config)

    def set(self, config: ExitConfig) -> None:
        """Take another depth or policy; nothing is trained anew.

        Raises:
            ConfigError: a depth beyond the model.
        """
        most = self.inner.num_layers
        for name, value in (("depth", config.depth), ("first", config.first)):
            if value is not None and value > most:
                raise ConfigError(f"exits.{name}: got {value}, expected at most {most}, the layers of {self.name}")
        self.config, self.depth = config, config.depth or most

    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Tensor:
        """Walk to the budget's depth and return the states as its exit gives them; ``layers`` go to the inner walk."""
        if layers is not None:
            return self.inner(batch, layers)
        return self._through(self.depth, self.inner(batch, range(self.depth)))

    def every_depth(self, batch: TokenBatch) -> list[Tensor]:
        """Return what ``forward`` would give at depth 1, 2, ..., all from one walk."""
        whole = self.extend(batch)
        start = whole.ids.shape[1] - batch.ids.shape[1]
        mask, hidden, found = self.mask(whole), self.embed(whole.ids, whole.positions), []
        for index in range(self.num_layers):
            hidden = self.layer(index, hidden, mask, whole.positions)
            found.append(self._through(index + 1, self.norm(hidden[:, start:])))
        return found

    def classify(self, batch: TokenBatch, rows: Tensor, columns: Tensor, head: Head) -> Tensor:
        """Return ``head`` of the states at some points, each as of the layer at which it left."""
        if self.training or self.config.policy == "never" or not len(rows):
            self.left[self.depth - 1] += len(rows)
            return super().classify(batch, rows, columns, head)
        walk = _Walk.start(self, batch, rows, columns)
        judge, answers = Judge(self.config, rows), torch.empty(0)
        for depth in range(1, self.depth + 1):
            walk = replace(walk, hidden=self.layer(depth - 1, walk.hidden, walk.mask, walk.positions))
            if depth < self.config.first:
                continue
            logits = head(self._through(depth, self.norm(walk.states()[None])[0]), walk.points)
            leaving = judge.leave(walk.points, logits) if depth < self.depth else torch.ones_like(walk.points == 0)
            answers = logits.new_zeros(len(rows), logits.shape[1]) if not len(answers) else answers
            answers[walk.points[leaving]] = logits[leaving]
            self.left[depth - 1] += int(leaving.sum())
            if bool(leaving.all()):
                break
            if bool(leaving.any()):
                walk = walk.without(leaving)
        return answers

    def _through(self, depth: int, states: Tensor) -> Tensor:
        return states if depth == self.inner.num_layers else self.exits[depth - 1](states)


@dataclass(frozen=True)
class _Walk:
    """A batch half way up the layers.

    Args:
        hidden: ``[batch, tokens, hidden]``.
        mask: ``[batch, 1, tokens, tokens]`` additive.
        positions: ``[batch, tokens]``.
        branches: ``[batch, tokens]``; -1 = padding.
        points: ``[some]`` numbers of the points that are still in.
        rows: ``[some]`` where they are now.
        columns: ``[some]`` where they are now.
    """

    hidden: Tensor
    mask: Tensor
    positions: Tensor
    branches: Tensor
    points: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def start(cls, backbone: Backbone, batch: TokenBatch, rows: Tensor, columns: Tensor) -> "_Walk":
        whole = backbone.extend(batch)
        return cls(
            hidden=backbone.embed(whole.ids, whole.positions),
            mask=backbone.mask(whole),
            positions=whole.positions,
            branches=whole.branches.masked_fill(~whole.keep, -1),
            points=torch.arange(len(rows), device=rows.device),
            rows=rows,
            columns=columns + (whole.ids.shape[1] - batch.ids.shape[1]),
        )

    def states(self) -> Tensor:
        """Return ``[some, hidden]``: the points' states."""
        return self.hidden[self.rows, self.columns]

    def without(self, leaving: Tensor) -> "_Walk":
        """Return the walk without the tokens that nobody who stays can see: left branches, and trees left by all."""
        rows, columns, points = self.rows[~leaving], self.columns[~leaving], self.points[~leaving]
        own = self.branches[rows, columns]
        wanted = torch.zeros(len(self.branches), int(self.branches.max()) + 1, dtype=torch.bool, device=rows.device)
        wanted[rows, own] = True
        wanted[:, 0] |= wanted.any(1)
        stays = wanted.gather(1, self.branches.clamp(min=0)) & (self.branches >= 0)
        kept, rows = rows.unique(return_inverse=True)
        stays = stays[kept]
        order = stays.long().argsort(dim=1, descending=True, stable=True)[:, : int(stays.sum(1).max())]
        mask = _columns(self.mask[kept].squeeze(1), order).transpose(1, 2)
        mask = _columns(mask, order).transpose(1, 2).unsqueeze(1)
        padding = ~stays.gather(1, order)
        return _Walk(
            hidden=_columns(self.hidden[kept], order),
            mask=mask.masked_fill(padding[:, None, None, :], torch.finfo(mask.dtype).min),
            positions=self.positions[kept].gather(1, order),
            branches=self.branches[kept].gather(1, order).masked_fill(padding, -1),
            points=points,
            rows=rows,
            columns=stays.cumsum(1)[rows, columns] - 1,
        )


def _columns(table: Tensor, order: Tensor) -> Tensor:
    """Return ``table``'s ``[batch, tokens, ...]`` tokens in the order of ``[batch, kept]``."""
    return table.gather(1, order.unsqueeze(-1).expand(-1, -1, table.shape[-1]))


class ExitTask(WrappedTask):
    """A task whose loss is the weighted sum of its losses at every depth, from one walk a batch.

    Args:
        inner: the task.
        config: whose weights to take.

    Source: M6-Rec (arXiv 2205.08084), M6-Edge: the sum over k of w_k L_k, L_k the loss with layer k as the last.
    """

    def __init__(self, inner: Task, config: ExitConfig) -> None:
        super().__init__(inner)
        self.config = config

    def loss(self, backbone: Backbone, batch: Any) -> Loss:
        """Return the weighted sum of the losses at every depth.

        Raises:
            ConfigError: the task's loss does not run the backbone.
        """
        assert isinstance(backbone, ExitingBackbone)
        record = _Record(backbone)
        last = self.inner.loss(record, batch)
        if not record.walks:
            raise ConfigError(
                f"got exits for a task ({self.name}) whose loss reads cached vectors, expected one that runs the "
                "backbone; for retrieval set task.item_vectors=step and a tuner, or remove exits"
            )
        depths = range(1, backbone.num_layers)
        views = [GivenStates(backbone, *(walk[depth - 1] for walk in record.walks)) for depth in depths]
        losses = [*(self.inner.loss(view, batch) for view in views), last]
        weights = exit_weights(len(losses), self.config.weights)
        value = torch.stack([weight * loss.value for weight, loss in zip(weights, losses, strict=True)]).sum()
        own = {f"loss_{depth}": float(loss.value.detach()) for depth, loss in enumerate(losses, start=1)}
        return Loss(value, last.weight, last.figures | own)


def exit_weights(num_layers: int, form: str) -> list[float]:
    """Return the weight of each layer's loss.

    >>> exit_weights(3, "rising"), [round(w, 2) for w in exit_weights(3, "printed")]
    ([0.16666666666666666, 0.3333333333333333, 0.5], [1.0, 0.67, 0.5])
    """
    depths = range(1, num_layers + 1)
    return [2 * k / (k * (k + 1) if form == "printed" else num_layers * (num_layers + 1)) for k in depths]


class _Record(WrappedBackbone):
    """A view that keeps what every layer gives, and gives what the last one does."""

    def __init__(self, inner: ExitingBackbone) -> None:
        super().__init__(inner)
        self.walks: list[list[Tensor]] = []

    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Tensor:
        if layers is not None:
            return self.inner(batch, layers)
        assert isinstance(self.inner, ExitingBackbone)
        self.walks.append(self.inner.every_depth(batch))
        return self.walks[-1][-1]


class GivenStates(WrappedBackbone):
    """A view that gives, pass after pass, states that somebody has computed.

    Args:
        inner: for all else.
        states: ``[batch, tokens, hidden]`` of each pass to come.
    """

    def __init__(self, inner: Backbone, *states: Tensor) -> None:
        super().__init__(inner)
        self._states = iter(states)

    def forward(self, batch: TokenBatch, layers: Sequence[int] | None = None) -> Tensor:
        """Return the next states; ``layers`` go to the inner walk."""
        return self.inner(batch, layers) if layers is not None else next(self._states)


def save_exits(backbone: ExitingBackbone, folder: Path) -> None:
    """Write the exits' weights into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.exits.state_dict().items()}
    save_file(tensors, folder / EXITS_FILE)


def load_exits(backbone: Backbone, config: ExitConfig, folder: Path) -> ExitingBackbone:
    """Return ``backbone`` with the exits that ``save_exits`` wrote, frozen.

    Raises:
        RunError: they are missing, damaged or another model's.
    """
    exiting = ExitingBackbone(backbone, config)
    try:
        exiting.exits.load_state_dict(load_file(folder / EXITS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{folder / EXITS_FILE}: cannot read the run's exits ({error}); train again") from error
    exiting.requires_grad_(False)
    return exiting.eval()
