"""Parameter sharing: one layer's weights used at many places, and a token table of low rank. Knows no task."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from m6rec.backbones.anatomy import anatomy_of, part
from m6rec.backbones.base import Backbone
from m6rec.backbones.structure import FactorisedEmbedding, set_layers, set_tokens, single_stack, twin
from m6rec.compressors.base import Subject
from m6rec.compressors.cost import Size
from m6rec.compressors.weights import bare_copy, train_whole
from m6rec.errors import ConfigError


@dataclass(frozen=True)
class ShareConfig:
    """What is shared, and what the shared weights start from."""

    groups: int = 1
    """Different layers that are left; neighbouring places share one. Changes results."""
    weights: Literal["average", "pick", "scratch"] = "average"
    """What a group's layer starts from: the mean of its layers, the middle one of them, or chance. Changes results."""
    embedding_rank: int | None = None
    """Inner width of the token table; null = the table as it is. Changes results."""
    distil: bool = True
    """Whether the shared model also learns to relate tokens as the run's own does. Changes results."""

    def __post_init__(self) -> None:
        if problems := [
            f"{name}: got {value}, expected 1 or more"
            for name, value in (("groups", self.groups), ("embedding_rank", self.embedding_rank))
            if value is not None and value < 1
        ]:
            raise ConfigError("\n".join(problems))


class Share:
    """Tie layers and factorise the token table, as ALBERT does, then train the run's recipe on what is left.

    What a tuner puts into a layer is not shared: every place in the walk is a module of its own around the same
    weights.

    Args:
        config: how much is shared.

    Source: ALBERT (arXiv 1909.11942); M6-Rec (arXiv 2205.08084), M6-Edge.
    Differs: the embedding's own norm stays behind the widening, where BERT has it, so that a trained model converts.
    """

    Config = ShareConfig

    def __init__(self, config: ShareConfig | None = None) -> None:
        self.config = config or ShareConfig()

    def compress(self, subject: Subject, out: Path) -> dict[str, Any]:
        """Write the shared backbone, train on it, and return sizes and quality."""
        bare = bare_copy(subject)
        before = Size.of(bare.model)
        share(bare, self.config)
        return train_whole(subject, bare, before, out, distil=self.config.distil)


def share(backbone: Backbone, config: ShareConfig) -> None:
    """Tie the layers of a bare backbone and factorise its token table, in place.

    Raises:
        ConfigError: more groups than layers, or a rank beyond the width.
        BackboneError: a family with two stacks, or a table that the head is tied to.
    """
    model: Any = backbone.model
    stack = single_stack(model)
    if config.groups > len(stack):
        raise ConfigError(f"groups: got {config.groups}, expected at most {len(stack)}, the layers of {backbone.name}")
    layers: list[nn.Module] = []
    for places in np.array_split(np.arange(len(stack)), config.groups):
        one = _one([stack[place] for place in places], config.weights, model)
        layers += [one, *(twin(one) for _ in places[1:])]
    set_layers(model, layers)
    if config.embedding_rank is not None:
        tokens = part(model, anatomy_of(model.config).tokens)
        set_tokens(model, factorised(tokens.weight, config.embedding_rank, from_chance=config.weights == "scratch"))


@torch.no_grad()
def _one(layers: list[nn.Module], weights: str, model: Any) -> nn.Module:
    """Return the layer that a group shares."""
    one = copy.deepcopy(layers[len(layers) // 2])
    if weights == "scratch":
        one.apply(model._init_weights)
    elif weights == "average":
        for name, weight in one.named_parameters():
            weight.copy_(torch.stack([layer.get_parameter(name) for layer in layers]).mean(0))
    return one


@torch.no_grad()
def factorised(table: Tensor, rank: int, from_chance: bool = False) -> FactorisedEmbedding:
    """Return the table of a given rank that is nearest to ``[vocabulary, hidden]`` rows.

    Raises:
        ConfigError: a rank beyond the width.
    """
    if rank > table.shape[1]:
        raise ConfigError(f"embedding_rank: got {rank}, expected at most {table.shape[1]}, the width of the table")
    tokens = FactorisedEmbedding(table.shape[0], rank, table.shape[1]).to(table.dtype).requires_grad_(False)
    if from_chance:
        nn.init.normal_(tokens.narrow.weight, std=0.02 * (table.shape[1] / rank) ** 0.5)
        return tokens
    rows, scales, columns = torch.linalg.svd(table.float(), full_matrices=False)
    tokens.narrow.weight.copy_(rows[:, :rank] * scales[:rank])
    tokens.widen.weight.copy_(columns[:rank].T)
    return tokens
