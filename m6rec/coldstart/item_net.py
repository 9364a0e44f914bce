"""What the predictors of one item's judgements share: fields as vectors, an item's own parameters, steps on them alone.

Knows no predictor, no phases and no report.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.coldstart.item_tasks import Facts, ItemTasks

Own = Mapping[str, Tensor]
"""An item's own parameters by name, each ``[items, ...]``."""


class Fields(nn.Module):
    """Every pair as a few vectors: its user, its item, the item's attribute fields; its text and the user's taste.

    Args:
        facts: of all items.
        num_users: how many there are.
        width: of each vector.

    Attributes:
        names: of the fields, in order.
        of_item: places of the fields that are the item's, its own row excepted: what a hypernetwork may look at.
    """

    attributes: Tensor
    texts: Tensor

    def __init__(self, facts: Facts, num_users: int, width: int) -> None:
        super().__init__()
        reads = facts.texts is not None
        self.names = ("user", "item", *facts.fields, *(("text", "taste") if reads else ()))
        self.of_item = tuple(n for n, name in enumerate(self.names) if name not in ("user", "item", "taste"))
        self.width = width
        self.users = nn.Embedding(num_users, width)
        nn.init.normal_(self.users.weight, std=0.01)
        self.bags = nn.ModuleDict({name: _flat(len(columns), width) for name, columns in facts.fields.items()})
        self._columns = dict(facts.fields)
        self.register_buffer("attributes", facts.attributes, persistent=False)
        self.register_buffer("texts", facts.texts if reads else torch.zeros(len(facts.attributes), 0), persistent=False)
        if reads:
            self.text, self.taste = _flat(self.texts.shape[1], width), _flat(self.texts.shape[1], width)

    def __len__(self) -> int:
        return len(self.names)

    def known(self, items: Int[Tensor, " items"]) -> Float[Tensor, "items fields width"]:
        """Return the vectors of the item's fields (``of_item``): the mean over an attribute's values, zero for none."""
        found = []
        for name, columns in self._columns.items():
            values = self.attributes[items][:, columns]
            found.append(self.bags[name](values / values.sum(1, keepdim=True).clamp(min=1)))
        if self.texts.shape[1]:
            found.append(self.text(self.texts[items]))
        return torch.stack(found, dim=1) if found else self.users.weight.new_zeros(len(items), 0, self.width)

    def forward(
        self, tasks: ItemTasks, rows: Float[Tensor, "items width"]
    ) -> Float[Tensor, "items judgements fields width"]:
        """Return the vectors of every pair.

        Args:
            tasks: the pairs.
            rows: each item's own vector.
        """
        num_items, count = tasks.users.shape
        of_item = torch.cat([rows[:, None], self.known(tasks.items)], dim=1)
        parts = [self.users(tasks.users)[:, :, None], of_item[:, None].expand(num_items, count, -1, -1)]
        if self.texts.shape[1]:
            parts.append(self.taste(tasks.taste)[:, :, None])
        return torch.cat(parts, dim=2)


def _flat(size: int, width: int) -> nn.Linear:
    """Return a map without bias that starts small, as embeddings do."""
    layer = nn.Linear(size, width, bias=False)
    nn.init.normal_(layer.weight, std=0.1 / max(1, size) ** 0.5)
    return layer


class ItemNet(nn.Module, ABC):
    """A predictor whose only parameters that belong to one item are named, so that they can be made and adapted alone.

    Args:
        facts: of all items.
        num_users: how many there are.
        width: of a field's vector.
        with_closed_form: whether the logit begins with what the closed form expects.
    """

    def __init__(self, facts: Facts, num_users: int, width: int, with_closed_form: bool = False) -> None:
        super().__init__()
        self.fields = Fields(facts, num_users, width)
        # Rows of items that are learnt from; a new item's start is another matter.
        self.rows = nn.Embedding(len(facts.attributes), width)
        nn.init.zeros_(self.rows.weight)
        self.bias = nn.Parameter(torch.zeros(()))
        self.trust = nn.Parameter(torch.full((2,), 0.5)) if with_closed_form else None

    @abstractmethod
    def predict(
        self, fields: Float[Tensor, "items judgements fields width"], own: Own
    ) -> Float[Tensor, "items judgements"]:
        """Return what is added to the logit of every pair."""

    def start(self, items: Int[Tensor, " items"]) -> dict[str, Tensor]:
        """Return the parameters that new items start with: here an empty row."""
        return {"row": self.rows.weight.new_zeros(len(items), self.fields.width)}

    def learnt(self, items: Int[Tensor, " items"]) -> dict[str, Tensor]:
        """Return the parameters of items that are learnt from."""
        return {**self.start(items), "row": self.rows(items)}

    def forward(self, tasks: ItemTasks, own: Own) -> Float[Tensor, "items judgements"]:
        """Return the logit of a yes of every pair."""
        logits = self.bias + self.predict(self.fields(tasks, own["row"]), own)
        return logits if self.trust is None else logits + tasks.expected @ self.trust

    def losses(self, tasks: ItemTasks, own: Own) -> Float[Tensor, " items"]:
        """Return each item's mean cross entropy."""
        logits = self(tasks, own)
        return tasks.mean(F.binary_cross_entropy_with_logits(logits, tasks.labels, reduction="none"))


def adapt(
    net: ItemNet, own: Own, known: ItemTasks, steps: int, rate: float, *, second_order: bool = False
) -> dict[str, Tensor]:
    """Return items' own parameters after some steps of gradient descent on what is known of each item.

    All items at once, yet each by itself: nobody's gradient reaches another's. The net stays as it is.

    Args:
        net: the predictor.
        own: where to start.
        known: judgements; an item without any stays as it is.
        steps: of gradient descent.
        rate: of a step.
        second_order: whether the outcome's gradient goes through the steps.

    Source: MAML (arXiv 1703.03400), equation 1, on a part of the parameters; first order: its section 5.2.
    """
    learning = torch.is_grad_enabled()
    for _ in range(steps):
        with torch.enable_grad():
            own = {
                name: value if value.requires_grad else value.detach().requires_grad_() for name, value in own.items()
            }
            gradients = torch.autograd.grad(
                net.losses(known, own).sum(), list(own.values()), create_graph=second_order, retain_graph=learning
            )
            own = {
                name: value - rate * gradient for (name, value), gradient in zip(own.items(), gradients, strict=True)
            }
        if not learning:
            own = {name: value.detach() for name, value in own.items()}
    return dict(own)
