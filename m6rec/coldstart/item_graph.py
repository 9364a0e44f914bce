"""EmerG: a graph of feature interactions for every item, made by a hypernetwork from what is known of the item.

Knows no phases, no training and no text beyond a vector.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.coldstart.item_net import ItemNet, Own
from m6rec.coldstart.item_tasks import Facts

States = list[Float[Tensor, "items judgements fields width"]]


@dataclass(frozen=True)
class ItemGraphConfig:
    """Settings of an item graph; all change results."""

    width: int = 16
    """Numbers of a field's vector."""
    num_layers: int = 3
    """Layers of the graph network; the states behind layer ``l`` are products of ``l + 1`` fields."""
    graph: Literal["made", "global", "untrained"] = "made"
    """Whose graph: the item's, made by the hypernetwork; one for all items, learnt; or the item's by a hypernetwork
    that never gets a gradient, which is what the published code trains."""
    readout: Literal["attention", "linear"] = "attention"
    """How states become a logit: as published, or a linear map of each layer's, which adds no interaction."""
    num_heads: int = 2
    """Of the attention."""


class GraphMaker(nn.Module):
    """A hypernetwork: what is known of an item -> a square of how strongly field ``g`` speaks to field ``f``.

    One small network a row of the graph, which is also told which row it makes.

    Args:
        num_known: numbers that are known of an item.
        num_fields: of a pair.

    Source: EmerG (arXiv 2407.10112), hypernetwork; sizes from LARS-research/EmerG @3c8f42f.
    """

    def __init__(self, num_known: int, num_fields: int) -> None:
        super().__init__()
        self.num_fields = num_fields
        self.rows = nn.ModuleList(
            nn.Sequential(
                nn.Linear(num_known + num_fields, num_fields),
                nn.ReLU(),
                nn.Linear(num_fields, num_fields),
                nn.ReLU(),
                nn.Linear(num_fields, num_fields),
            )
            for _ in range(num_fields)
        )

    def forward(self, known: Float[Tensor, "items known"]) -> Float[Tensor, "items fields fields"]:
        """Return every item's graph."""
        names = torch.eye(self.num_fields, dtype=known.dtype, device=known.device)
        made = [
            row(torch.cat([known, name.expand(len(known), -1)], dim=1))
            for row, name in zip(self.rows, names, strict=True)
        ]
        return torch.stack(made, dim=1)


def higher_orders(graph: Float[Tensor, "items fields fields"], num_layers: int) -> list[Float[Tensor, "items _ _"]]:
    """Return the graph of each layer, all made from the first: normalised, its stronger half, symmetric.

    Layer ``l`` goes one step further along the first graph's edges, and stays on them:
    ``A_l = minmax(A_(l-1) U) * [U > 0]``.

    Args:
        graph: any numbers.
        num_layers: how many.

    Source: EmerG, higher-order graphs; from the lines that LARS-research/EmerG @3c8f42f has commented out.
    """
    num_fields = graph.shape[-1]
    eye = torch.eye(num_fields, dtype=torch.bool, device=graph.device)
    first = _minmax(graph).masked_fill(eye, 1.0)
    half = (num_fields * num_fields + 1) // 2
    least = first.flatten(1).topk(half, dim=1).values[:, -1, None, None]
    kept = first * (first >= least)
    step = (kept + kept.transpose(1, 2)) / 2
    graphs = [step]
    for _ in range(num_layers - 1):
        graphs.append(_minmax(graphs[-1] @ step) * (step > 0))
    return graphs


def _minmax(graph: Float[Tensor, "items fields fields"]) -> Float[Tensor, "items fields fields"]:
    low, high = graph.amin((1, 2), keepdim=True), graph.amax((1, 2), keepdim=True)
    return (graph - low) / (high - low).clamp(min=1e-6)


class GraphNetwork(nn.Module):
    """Fields that multiply what they hear from each other: ``h^l = act(A_l H^0 W_l) * h^(l-1)``, ``h^0 = H^0``.

    The states behind layer ``l`` are of degree ``l + 1`` in the fields (tested: they grow so when all fields do).

    Args:
        width: of a field's vector.
        num_layers: how many.

    Source: EmerG, graph neural network with higher-order interactions.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(num_layers))

    def forward(
        self, fields: Float[Tensor, "items judgements fields width"], graphs: list[Float[Tensor, "items _ _"]]
    ) -> States:
        """Return the states before the first layer and behind each."""
        states = [fields]
        for number, (layer, graph) in enumerate(zip(self.maps, graphs, strict=True), start=1):
            heard = torch.einsum("ifg,ijgw->ijfw", graph, layer(fields))
            heard = heard if number == len(self.maps) else F.leaky_relu(heard)
            states.append(heard * states[-1])
        return states


class AttentionReadout(nn.Module):
    """States to a logit: the layers' sum, whose fields attend to each other and vote: ``sum_f sigmoid(M h)_f w h_f``.

    Args:
        num_fields: of a pair.
        width: of a state.
        num_heads: of the attention.

    Source: EmerG's public code.
    Differs: two heads of half the width instead of three, attending once over the sum instead of in every layer, for it
        was most of the cost; layers are normed first, for products of small numbers would not be heard beside single
        ones.
    """

    def __init__(self, num_fields: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.asked = nn.Linear(width, 3 * width, bias=False)
        self.gate, self.vote = nn.Linear(num_fields * width, num_fields), nn.Linear(width, 1, bias=False)

    def forward(
        self, states: list[Float[Tensor, "items judgements fields width"]]
    ) -> Float[Tensor, "items judgements"]:
        """Return a logit a pair."""
        heard = torch.stack([self.norm(each) for each in states]).sum(0)
        parts = self.asked(heard).unflatten(-1, (3, self.num_heads, -1)).transpose(-4, -2)
        query, key, value = parts.unbind(-3)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(-3, -2).flatten(-2)
        hidden = F.relu(heard + attended)
        return (self.gate(hidden.flatten(-2)).sigmoid() * self.vote(hidden)[..., 0]).sum(-1)


class LinearReadout(nn.Module):
    """States to a logit: a weight for every number of every layer.

    Args:
        num_fields: of a pair.
        width: of a state.
        num_layers: of the graph network.
    """

    def __init__(self, num_fields: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_layers + 1, num_fields, width) * width**-0.5)

    def forward(
        self, states: list[Float[Tensor, "items judgements fields width"]]
    ) -> Float[Tensor, "items judgements"]:
        """Return a logit a pair."""
        return torch.einsum("lijfw,lfw->ij", torch.stack(states), self.weight)


class ItemGraph(ItemNet):
    """A graph network over the fields of a pair, on the graph of its item.

    An item's own parameters are its row and its graph: a hypernetwork makes the graph, warm-up moves both, and nothing
    else of the net ever moves for one item. Where items have texts, the graph is made from them too.

    Args:
        facts: of all items.
        num_users: how many there are.
        config: settings.
        with_closed_form: whether the logit begins with what the closed form expects.

    Source: Wang et al., EmerG (arXiv 2407.10112); LARS-research/EmerG @3c8f42f.
    Differs: the public code writes the graphs into a table's ``.data``, which cuts them off from the hypernetwork: it
        never gets a gradient. Here graphs are tensors with a history (tested: it moves). The public code also leaves
        out the normalisation, the stronger half and the higher orders, and masks the item's last four fields.
    """

    def __init__(
        self, facts: Facts, num_users: int, config: ItemGraphConfig | None = None, with_closed_form: bool = False
    ) -> None:
        self.config = config or ItemGraphConfig()
        width, num_layers = self.config.width, self.config.num_layers
        super().__init__(facts, num_users, width, with_closed_form)
        count = len(self.fields)
        self.maker = None if self.config.graph == "global" else GraphMaker(len(self.fields.of_item) * width, count)
        self.common = nn.Parameter(torch.randn(count, count) * 0.1)
        self.network = GraphNetwork(width, num_layers)
        self.readout: nn.Module = (
            LinearReadout(count, width, num_layers)
            if self.config.readout == "linear"
            else AttentionReadout(count, width, self.config.num_heads)
        )

    def start(self, items: Int[Tensor, " items"]) -> dict[str, Tensor]:
        """Return an empty row and a graph for each item."""
        own = super().start(items)
        if self.maker is None:
            return {**own, "graph": self.common.repeat(len(items), 1, 1)}
        made = self.maker(self.fields.known(items).flatten(1))
        return {**own, "graph": made.detach() if self.config.graph == "untrained" else made}

    def learnt(self, items: Int[Tensor, " items"]) -> dict[str, Tensor]:
        """Return the rows of items that are learnt from, and one graph for all: what pre-training goes with."""
        return {"row": self.rows(items), "graph": self.common.repeat(len(items), 1, 1)}

    def predict(
        self, fields: Float[Tensor, "items judgements fields width"], own: Own
    ) -> Float[Tensor, "items judgements"]:
        """Return what is added to the logit of every pair."""
        graphs = higher_orders(own["graph"], self.config.num_layers)
        logits: Tensor = self.readout(self.network(fields, graphs))
        return logits
