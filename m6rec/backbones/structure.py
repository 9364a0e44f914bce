"""What a model's own config cannot say: layers used several times, a factorised embedding, layers cut narrower.

A folder with such a model is an ordinary backbone folder: its ``config.json`` carries the structure, its weights are
those that differ, each once. This module knows no method of compression.
"""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m6rec.backbones.anatomy import anatomy_of, part
from m6rec.backbones.base import Backbone
from m6rec.config import parse
from m6rec.errors import BackboneError

CONFIG_KEY, WEIGHTS_FILE = "m6rec_structure", "model.safetensors"


@dataclass(frozen=True)
class Cuts:
    """Where a family's layers can be cut narrower, as paths into a layer.

    Args:
        heads: projections whose outputs are heads side by side; none = its heads cannot be cut.
        mixed: the projection that takes the heads together.
        inner: projections whose outputs are the hidden units of the feed-forward.
        outer: the projection that takes them.
    """

    heads: tuple[str, ...]
    mixed: str
    inner: tuple[str, ...]
    outer: str


_GATED = Cuts((), "self_attn.o_proj", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
CUTS = {
    "bert": Cuts(
        heads=("attention.self.query", "attention.self.key", "attention.self.value"),
        mixed="attention.output.dense",
        inner=("intermediate.dense",),
        outer="output.dense",
    ),
    "llama": _GATED,
    "qwen3": _GATED,
}


@dataclass(frozen=True)
class Structure:
    """How a model differs from what its config says.

    Args:
        layers: for each place in the walk, the first place that has the same weights.
        embedding_rank: inner width of the token embedding; ``None`` = a plain table.
        heads: outputs of the head projections at each place; ``None`` = as in the config.
        widths: hidden units of the feed-forward at each place; ``None`` = as in the config.
    """

    layers: tuple[int, ...]
    embedding_rank: int | None = None
    heads: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None

    @classmethod
    def of(cls, model: Any) -> "Structure":
        """Return the structure of a model as it stands."""
        stack = single_stack(model)
        weights = [next(iter(layer.parameters())) for layer in stack]
        first = tuple(next(n for n, other in enumerate(weights) if other is weight) for weight in weights)
        tokens, cuts = part(model, anatomy_of(model.config).tokens), CUTS.get(model.config.model_type)
        return cls(
            layers=first,
            embedding_rank=tokens.rank if isinstance(tokens, FactorisedEmbedding) else None,
            heads=tuple(part(layer, cuts.heads[0]).out_features for layer in stack) if cuts and cuts.heads else None,
            widths=tuple(part(layer, cuts.outer).in_features for layer in stack) if cuts else None,
        )


class FactorisedEmbedding(nn.Module):
    """A token table of low rank: narrow rows, and one linear map that widens them.

    Args:
        num_embeddings: rows.
        rank: of the narrow rows.
        width: of what is looked up.

    Source: ALBERT (arXiv 1909.11942), section 3.1.
    """

    def __init__(self, num_embeddings: int, rank: int, width: int) -> None:
        super().__init__()
        self.num_embeddings, self.rank = num_embeddings, rank
        self.narrow, self.widen = nn.Embedding(num_embeddings, rank), nn.Linear(rank, width, bias=False)

    @property
    def weight(self) -> Float[Tensor, "vocabulary hidden"]:
        """Every token's row."""
        return self.widen(self.narrow.weight)

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
        """Look tokens up."""
        return self.widen(self.narrow(ids))


def single_stack(model: Any) -> nn.ModuleList:
    """Return the layers of a model that has one stack of them.

    Raises:
        BackboneError: it has two (T5), or they are no layers of attention.
    """
    anatomy = anatomy_of(model.config)
    if anatomy.family not in ("encoder", "causal"):
        raise BackboneError(
            f"got a model of type {model.config.model_type!r}, expected an encoder or a decoder: only one stack of "
            "attention layers can be shared, cut or dropped; choose another backbone"
        )
    stack: nn.ModuleList = part(model, anatomy.layers[0])
    return stack


def set_layers(model: Any, layers: list[nn.Module]) -> None:
    """Put other layers into a model, and tell its config and the layers themselves their new places."""
    anatomy = anatomy_of(model.config)
    owner, _, name = anatomy.layers[0].rpartition(".")
    setattr(part(model, owner), name, nn.ModuleList(layers))
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):  # all alike: anatomy refuses what slides
        model.config.layer_types = model.config.layer_types[:1] * len(layers)
    for place, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", place)  # noqa: B010  (torch types every attribute as a tensor)


def twin(layer: nn.Module) -> nn.Module:
    """Return a layer of its own around the same weights: what is put into the one later is not in the other."""
    return copy.deepcopy(layer, {id(weight): weight for weight in layer.parameters()})


def set_tokens(model: Any, tokens: nn.Module) -> None:
    """Put another token embedding into a model.

    Raises:
        BackboneError: the model's head is tied to its table.
    """
    anatomy = anatomy_of(model.config)
    if anatomy.head is not None:
        raise BackboneError(
            f"got a model of type {model.config.model_type!r}, whose language-model head is a table of its own or the "
            "embedding's, expected one without; leave embedding_rank out"
        )
    owner, _, name = anatomy.tokens.rpartition(".")
    setattr(part(model, owner) if owner else model, name, tokens)


def cut(linear: nn.Linear, outputs: Tensor | None = None, inputs: Tensor | None = None) -> nn.Linear:
    """Return a linear map with some of its outputs and inputs, in the given order."""
    weight = linear.weight if outputs is None else linear.weight[outputs]
    weight = weight if inputs is None else weight[:, inputs]
    smaller = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None, dtype=weight.dtype)
    smaller.weight = nn.Parameter(weight.detach().clone(), requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        bias = linear.bias if outputs is None else linear.bias[outputs]
        smaller.bias = nn.Parameter(bias.detach().clone(), requires_grad=linear.bias.requires_grad)
    return smaller


def narrow(layer: nn.Module, cuts: Cuts, heads: Tensor | None, units: Tensor | None) -> None:
    """Keep some of a layer's head outputs and hidden units, in place.

    Args:
        layer: whose.
        cuts: where.
        heads: numbers of the head projections' outputs to keep; ``None`` = all.
        units: numbers of the hidden units to keep; ``None`` = all.
    """
    for kept, sources, sink in ((heads, cuts.heads, cuts.mixed), (units, cuts.inner, cuts.outer)):
        if kept is not None:
            for path in sources:
                _put(layer, path, cut(part(layer, path), outputs=kept))
            _put(layer, sink, cut(part(layer, sink), inputs=kept))


def save_structured(backbone: Backbone, folder: Path) -> None:
    """Write a bare backbone as a folder that ``resolve_backbone`` loads, every weight once."""
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = backbone.model
    model.config.m6rec_structure = asdict(Structure.of(model))
    model.config.save_pretrained(folder)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    backbone.tokenizer.save_pretrained(folder)


def load_structured(source: Path, config: Any, **options: Any) -> Any:
    """Return the model in a folder that ``save_structured`` wrote.

    Args:
        source: the folder.
        config: read from it.
        options: of the model's class.

    Raises:
        BackboneError: its weights are another model's.
    """
    import transformers

    structure = parse(Structure, getattr(config, CONFIG_KEY))
    model = getattr(transformers, anatomy_of(config).auto).from_config(config, **options)
    _reshape(model, structure)
    weights, own = load_file(source / WEIGHTS_FILE), dict(model.named_parameters())
    if {name: w.shape for name, w in weights.items()} != {name: w.shape for name, w in own.items()}:
        raise BackboneError(f"got other weights in {source} than its config.json describes; compress the run again")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])
    return model.eval()


def _reshape(model: Any, structure: Structure) -> None:
    stack, cuts = single_stack(model), CUTS.get(model.config.model_type)
    for place, layer in enumerate(stack):
        if cuts is not None:
            heads, widths = structure.heads, structure.widths
            narrow(
                layer,
                cuts,
                None if heads is None else torch.arange(heads[place]),
                None if widths is None else torch.arange(widths[place]),
            )
    set_layers(model, [stack[n] if n == place else twin(stack[n]) for place, n in enumerate(structure.layers)])
    if structure.embedding_rank is not None:
        tokens = part(model, anatomy_of(model.config).tokens)
        set_tokens(model, FactorisedEmbedding(tokens.num_embeddings, structure.embedding_rank, tokens.embedding_dim))


def _put(layer: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(part(layer, owner) if owner else layer, name, module)
