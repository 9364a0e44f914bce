"""Learning to predict new items' judgements: from rows, by item tasks with inner steps, and the warm-up at the end.

What is kept and how many warm-up steps are taken is chosen on validation items alone. Knows no predictor by name.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from m6rec.coldstart.item_net import ItemNet, adapt
from m6rec.coldstart.item_phases import PHASES, Part, Phase
from m6rec.coldstart.item_tasks import ItemTasks, TaskCutter
from m6rec.errors import ConfigError, DataError

ITEMS_AT_ONCE = 64
STEPS = (0, 1, 3, 10)
"""Warm-up steps that validation chooses from, in every phase."""


@dataclass(frozen=True)
class LearnConfig:
    """Settings of learning over items; all change results."""

    num_epochs: int = 10
    """Passes over as many judgements as there are."""
    num_items: int = 32
    """Items a step, each as likely as it has judgements."""
    num_queries: int = 16
    """Most judgements of an item in a step's loss."""
    lr: float = 3e-3
    """Of Adam; it falls to zero on a line."""
    weight_decay: float = 1e-5
    """Of Adam."""
    inner_steps: int = 1
    """Steps on an item's own parameters before its loss is taken; 0 = none are learnt through."""
    inner_lr: float = 0.1
    """Of an inner step, and of a warm-up step."""
    second_order: bool = False
    """Whether the gradient goes through the inner steps; else through what they begin with alone."""
    support_weight: float = 0.1
    """Share of the loss before the inner steps, as published."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if min(self.num_epochs, self.num_items, self.num_queries) < 1 or self.inner_steps < 0:
            raise ConfigError(
                f"got num_epochs {self.num_epochs}, num_items {self.num_items}, num_queries {self.num_queries} and "
                f"inner_steps {self.inner_steps}, expected 1 or more, and 0 or more"
            )


Step = Callable[[ItemTasks, ItemTasks], Float[Tensor, ""]]
"""What is known of some items and what is asked -> a loss."""


def draws(cutter: TaskCutter, config: LearnConfig) -> Iterator[tuple[ItemTasks, ItemTasks]]:
    """Yield an epoch's item tasks: some judgements of an item as if it were in a phase, others asked.

    Raises:
        DataError: no item with two judgements to learn from.
    """
    phases, rng = cutter.phases, np.random.default_rng([config.seed, 1])
    train = phases.train
    order = train[np.argsort(phases.rows.items[train], kind="stable")]
    items, starts, counts = np.unique(phases.rows.items[order], return_index=True, return_counts=True)
    usable = np.flatnonzero(counts >= 2)
    if not len(usable):
        raise DataError("got no item with two judgements to learn from, expected some; look at the split and shares")
    chances = counts[usable] / counts[usable].sum()
    sizes = [phases.shots * number for number in range(len(PHASES))]
    while True:
        chosen = rng.choice(usable, size=config.num_items, p=chances)
        known, asked = [], []
        for place in chosen:
            own = rng.permutation(order[starts[place] : starts[place] + counts[place]])
            size = min(sizes[rng.integers(len(sizes))], len(own) - 1)
            known.append(own[:size])
            asked.append(own[size : size + config.num_queries])
        yield cutter.cut(items[chosen], known, asked)


def learn(
    net: ItemNet, step: Step, trained: Iterable[nn.Parameter], cutter: TaskCutter, config: LearnConfig
) -> list[float]:
    """Take steps, and keep the weights of the epoch that is best on validation items.

    Args:
        net: judged after every epoch, and before the first.
        step: the loss.
        trained: what is trained.
        cutter: of the judgements.
        config: settings.

    Returns:
        Validation's figure after each epoch, the first one before any.
    """
    parameters = list(trained)
    optimizer = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    length = max(1, len(cutter.phases.train) // (config.num_items * config.num_queries))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=length * config.num_epochs)
    stream, figures = draws(cutter, config), [validate(net, cutter, config)]
    best = copy.deepcopy(net.state_dict())
    for _ in range(config.num_epochs):
        net.train()
        for _ in range(length):
            optimizer.zero_grad()
            step(*next(stream)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        figures.append(validate(net, cutter, config))
        if figures[-1] >= max(figures):
            best = copy.deepcopy(net.state_dict())
    net.load_state_dict(best)
    return figures


def from_rows(net: ItemNet, config: LearnConfig, dropped: float = 0.0) -> Step:
    """Return the loss of ordinary training: every item has the row that it has learnt.

    Args:
        net: the predictor.
        config: its seed is that of what is dropped.
        dropped: chance that an item stands there as if it were new.
    """
    generator = torch.Generator().manual_seed(config.seed)

    def step(known: ItemTasks, asked: ItemTasks) -> Float[Tensor, ""]:
        own = net.learnt(asked.items)
        kept = torch.rand(len(asked.items), 1, generator=generator) >= dropped
        return net.losses(asked, {**own, "row": own["row"] * kept}).mean()

    return step


def from_tasks(net: ItemNet, config: LearnConfig) -> Step:
    """Return the loss of meta-training: an item begins as a new one, steps on what is known, and is asked.

    Source: MetaEmbedding (arXiv 1904.11547), equation 8, and EmerG: the loss before the step counts too.
    """

    def step(known: ItemTasks, asked: ItemTasks) -> Float[Tensor, ""]:
        own = net.start(asked.items)
        later = adapt(net, own, known, config.inner_steps, config.inner_lr, second_order=config.second_order)
        before, after = net.losses(known, own).mean(), net.losses(asked, later).mean()
        return config.support_weight * before + (1 - config.support_weight) * after

    return step


def predict(net: ItemNet, cutter: TaskCutter, part: Part, phase: Phase, steps: int, rate: float) -> NDArray[np.float64]:
    """Return a score of every query of a part in a phase, after warm-up steps on each item's own parameters."""
    known, asked = cutter.phase(part, phase)
    net.eval()
    found = []
    for start in range(0, len(asked.items), ITEMS_AT_ONCE):
        few, questions = (_take(tasks, slice(start, start + ITEMS_AT_ONCE)) for tasks in (known, asked))
        with torch.no_grad():
            own = adapt(net, net.start(few.items), few, steps if few.keep.any() else 0, rate)
            scores = net(questions, own)
        found.append(nn.functional.pad(scores, (0, asked.keep.shape[1] - scores.shape[1])))
    return cutter.in_order(part, torch.cat(found), asked)


def _take(tasks: ItemTasks, which: slice) -> ItemTasks:
    """Return some items, no wider than they need."""
    width = max(1, int(tasks.keep[which].sum(1).max()))
    columns = {name: value[which][:, :width] for name, value in vars(tasks).items() if name != "items"}
    return ItemTasks(items=tasks.items[which], **columns)


def validate(net: ItemNet, cutter: TaskCutter, config: LearnConfig) -> float:
    """Return the mean over the first and the last phase of the pooled AUC on validation items, after one step."""
    steps = min(1, config.inner_steps)
    scores = [predict(net, cutter, "valid", phase, steps, config.inner_lr) for phase in (PHASES[0], PHASES[-1])]
    return float(np.nanmean([cutter.phases.judge("valid", found)["auc"] for found in scores]))


@dataclass
class WarmUp:
    """A net with the number of warm-up steps that validation items ask for in each phase.

    Args:
        net: learnt.
        rate: of a step.
        steps: by phase.
    """

    net: ItemNet
    rate: float
    steps: Mapping[Phase, int] = field(default_factory=dict)

    @classmethod
    def chosen(cls, net: ItemNet, cutter: TaskCutter, rate: float) -> "WarmUp":
        """Return the warm-up that is best on validation items; of equals, the one of fewer steps."""
        steps: dict[Phase, int] = {}
        for phase in PHASES:
            tried = STEPS if phase != "cold" else STEPS[:1]
            figures = [
                np.nan_to_num(cutter.phases.judge("valid", predict(net, cutter, "valid", phase, count, rate))["auc"])
                for count in tried
            ]
            steps[phase] = tried[int(np.argmax(figures))]
        return cls(net, rate, steps)

    def scores(self, cutter: TaskCutter, part: Part, phase: Phase) -> NDArray[np.float64]:
        """Return a score of every query of a part in a phase."""
        return predict(self.net, cutter, part, phase, self.steps[phase], self.rate)
