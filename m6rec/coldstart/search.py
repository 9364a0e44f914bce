"""One-shot search for a structure: a supernet learns on the users that are learnt from, validation users choose.

Source: ColdNAS (2306.03387): weights and gates learnt together by Adam on the query loss; the best gates are retrained
    from scratch.
Differs: how many gates are kept is chosen on validation users, with the supernet's weights; the public search looked
    at the test users for that. It gets no other users than the two groups that are handed in.

It knows no task and no file.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m6rec.coldstart.events import ColdBatch, ItemTable
from m6rec.coldstart.modulation import Modulated, ModulationConfig, Structure
from m6rec.nn.modulation import OPS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Args:
        structure: the chosen one.
        gates: ``[positions][operations]`` how far open each gate of the supernet was.
        losses: each candidate in words -> its loss on the validation users.
    """

    structure: Structure
    gates: list[list[float]]
    losses: dict[str, float]


def squared_error(prediction: Tensor, batch: ColdBatch) -> Tensor:
    """Return the mean squared error of what was asked, in standard units."""
    asked = batch.query.keep
    return (prediction - batch.query.values)[asked].square().mean()


def search(
    supernet: Modulated,
    table: ItemTable,
    train: Callable[[int], Iterable[ColdBatch]],
    valid: Sequence[ColdBatch],
    config: ModulationConfig,
    epochs: int = 4,
    lr: float = 2e-3,
    gate_lr: float = 2e-2,
) -> Found:
    """Train a supernet and return the structure that validation users are best predicted by.

    Args:
        supernet: with soft gates, fresh.
        table: what is known of items.
        train: epoch -> batches of users that are learnt from.
        valid: batches of validation users.
        config: which sizes of structure are compared.
        epochs: passes over ``train``.
        lr: of the weights.
        gate_lr: of the gates, which must get somewhere before the weights have settled round them.
    """
    assert supernet.gates is not None
    weights = [parameter for name, parameter in supernet.named_parameters() if name != "gates"]
    optimizer = torch.optim.Adam([{"params": weights, "lr": lr}, {"params": [supernet.gates], "lr": gate_lr}])
    supernet.train()
    for epoch in range(epochs):
        for batch in train(epoch):
            optimizer.zero_grad()
            squared_error(supernet(table, batch), batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    scores = supernet.scores()
    losses = {}
    for number in config.num_gates:
        structure = Structure.top(scores, number)
        losses[structure] = closed(supernet, structure, table, valid)
        logger.info("structure %s: %.4f on validation users", structure, losses[structure])
    best = min(losses, key=lambda each: losses[each])
    if best.is_collapsed:
        logger.warning("the search put one operation everywhere (%s): it has found no structure", best)
    return Found(best, scores.tolist(), {str(structure): loss for structure, loss in losses.items()})


@torch.no_grad()
def closed(supernet: Modulated, structure: Structure, table: ItemTable, batches: Sequence[ColdBatch]) -> float:
    """Return the loss of a supernet whose gates are shut or open as a structure says; the gates stay as they were."""
    assert supernet.gates is not None
    kept, training = supernet.gates.clone(), supernet.training
    opened = torch.tensor(structure.gates)[
        [place for place, _ in supernet.places],
        [OPS.index(operation) for _, operation in supernet.places],
    ]
    supernet.gates.copy_(torch.where(opened, torch.inf, -torch.inf))
    supernet.eval()
    losses = [(squared_error(supernet(table, batch), batch).item(), int(batch.query.keep.sum())) for batch in batches]
    supernet.gates.copy_(kept)
    supernet.train(training)
    return sum(loss * number for loss, number in losses) / sum(number for _, number in losses)
