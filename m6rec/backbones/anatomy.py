"""Where each Hugging Face family keeps its embeddings, layers, norms and head: the only file that knows.

Chosen by ``config.model_type``. A new family is one entry here (and, where its layers are called in another way, one
file beside ``encoder.py``). This module knows no tree, no tuner, and no checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from m6rec.backbones.base import Family
from m6rec.backbones.sites import Sites, Span
from m6rec.errors import BackboneError


def _enter_bert(
    model: Any, rows: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens hidden"]:
    return model.embeddings(inputs_embeds=rows, position_ids=positions)


def _enter_gpt2(
    model: Any, rows: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens hidden"]:
    return model.transformer.drop(rows + model.transformer.wpe(positions))


def _enter_rotary(
    model: Any, rows: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens hidden"]:
    return rows  # positions turn the queries and keys of every layer instead


def _enter_t5(
    model: Any, rows: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens hidden"]:
    return model.encoder.dropout(rows)  # positions bias the scores of every layer instead


def _enter_nextitnet(
    model: Any, rows: Float[Tensor, "batch tokens hidden"], positions: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens hidden"]:
    return model.dropout(rows)  # a convolution knows its neighbours by their columns


@dataclass(frozen=True)
class Anatomy:
    """The parts of one family, as dotted paths into its model.

    Args:
        family: which way it reads.
        auto: name of the transformers auto class that loads it with the head it was trained with.
        tokens: the token embedding.
        layers: the layers, one path a stack (T5 has two).
        norms: what stands after each stack; ``None`` = nothing.
        sites: where something trained can be put into a layer of each stack, as paths into the layer.
        enter: model, token rows, positions -> input of the first layer.
        head: the language-model head; ``None`` = tied to the token embedding.
        rotary: the module that turns positions into cosines and sines; ``None`` = none.
        max_tokens: config field of the longest sequence, or the number itself.
        norm_names: what the norms are called in their modules, as PEFT takes names.
        conv1d: whether the projections are stored transposed (GPT-2), which PEFT has to be told.
    """

    family: Family
    auto: str
    tokens: str
    layers: tuple[str, ...]
    norms: tuple[str | None, ...]
    sites: tuple[Sites, ...]
    enter: Callable[[Any, Tensor, Tensor], Tensor]
    head: str | None = None
    rotary: str | None = None
    max_tokens: str | int = "max_position_embeddings"
    norm_names: tuple[str, ...] = ()
    conv1d: bool = False


def _contained(attention: tuple[str, ...], feed_forward: str, output: str) -> Sites:
    """Return the sites of a layer whose feed-forward is one module."""
    return Sites(attention, (f"{feed_forward}.{output}",), (Span(feed_forward, feed_forward),))


_ROTARY = Anatomy(
    family="causal",
    auto="AutoModelForCausalLM",
    tokens="model.embed_tokens",
    layers=("model.layers",),
    norms=("model.norm",),
    sites=(_contained(("self_attn.o_proj",), "mlp", "down_proj"),),
    enter=_enter_rotary,
    head="lm_head",
    rotary="model.rotary_emb",
    norm_names=("input_layernorm", "post_attention_layernorm", "norm"),
)

ANATOMIES: dict[str, Anatomy] = {
    "bert": Anatomy(
        family="encoder",
        auto="AutoModel",
        tokens="embeddings.word_embeddings",
        layers=("encoder.layer",),
        norms=(None,),
        sites=(Sites(("attention.output.dense",), ("output.dense",), (Span("intermediate", "output.dense"),)),),
        enter=_enter_bert,
        norm_names=("LayerNorm",),
    ),
    "gpt2": Anatomy(
        family="causal",
        auto="AutoModelForCausalLM",
        tokens="transformer.wte",
        layers=("transformer.h",),
        norms=("transformer.ln_f",),
        sites=(_contained(("attn.c_proj",), "mlp", "c_proj"),),
        enter=_enter_gpt2,
        head="lm_head",
        norm_names=("ln_1", "ln_2", "ln_f"),
        conv1d=True,
    ),
    "llama": _ROTARY,
    "nextitnet": Anatomy(
        family="convolution",
        auto="AutoModel",
        tokens="items",
        layers=("blocks",),
        norms=(None,),
        sites=(Sites(("first.taps",), ("second.taps",), (Span("first", "first"), Span("second", "second"))),),
        enter=_enter_nextitnet,
        max_tokens="receptive_field",
        norm_names=("first_norm", "second_norm"),
    ),
    "qwen3": _ROTARY,
    "t5": Anatomy(
        family="seq2seq",
        auto="AutoModelForSeq2SeqLM",
        tokens="shared",
        layers=("encoder.block", "decoder.block"),
        norms=("encoder.final_layer_norm", "decoder.final_layer_norm"),
        sites=(
            _contained(("layer.0.SelfAttention.o",), "layer.1.DenseReluDense", "wo"),
            _contained(("layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"), "layer.2.DenseReluDense", "wo"),
        ),
        enter=_enter_t5,
        head="lm_head",
        max_tokens=512,  # relative positions have no end; this is the length T5 was trained on
        norm_names=("layer_norm", "final_layer_norm"),
    ),
}


def anatomy_of(config: Any) -> Anatomy:
    """Return the anatomy of a Hugging Face config's family.

    Raises:
        BackboneError: the walk does not know the family, or the model narrows attention to a sliding window.
    """
    if config.model_type not in ANATOMIES:
        raise BackboneError(
            f"got a model of type {config.model_type!r}, expected one of {', '.join(sorted(ANATOMIES))}; "
            "choose another model or add its anatomy to m6rec/backbones/anatomy.py"
        )
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise BackboneError(
            "got a model with sliding-window layers, expected full attention in every layer, for a tree mask reaches "
            "any distance; set use_sliding_window=false in its config.json"
        )
    return ANATOMIES[config.model_type]


def part(model: nn.Module, path: str) -> Any:
    """Return the module at a dotted path."""
    return model.get_submodule(path)


def silence_dropout(model: nn.Module) -> None:
    """Set every dropout inside a pretrained model to zero, in place.

    A frozen model has nothing to regularise, and attention with dropout keeps its whole score matrix for the backward
    pass (measured on MiniLM with trees of 1,300 tokens, eight a batch: 16 GB).
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Llama and Qwen hold a number, T5 and BERT a module.
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def logit_scale(config: Any) -> float:
    """Return what the states are multiplied by before the head (T5 with tied embeddings shrinks them; else 1)."""
    return float(config.d_model**-0.5) if getattr(config, "scale_decoder_outputs", False) else 1.0


def decoder_parts(block: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return self-attention, cross-attention and feed-forward of a T5 decoder block."""
    attend, cross, feed = block.layer
    return attend, cross, feed


def source_keys(
    cross: Any, states: Float[Tensor, "batch source hidden"]
) -> tuple[Float[Tensor, "batch heads source width"], Float[Tensor, "batch heads source width"]]:
    """Return the keys and values that a T5 cross-attention makes of the encoder's states."""
    attention = cross.EncDecAttention
    width = attention.key_value_proj_dim
    keys, values = (
        made.unflatten(-1, (-1, width)).transpose(1, 2) for made in (attention.k(states), attention.v(states))
    )
    return keys, values


def position_bias(
    stack: Any, queries: Int[Tensor, "batch tokens"], keys: Int[Tensor, "batch keys"], bidirectional: bool
) -> Float[Tensor, "batch heads tokens keys"]:
    """Return the bias of a T5 stack for explicit positions of queries and of keys.

    Differs: the library counts columns; in a tree positions restart in every branch.
    """
    attention = stack[0].layer[0].SelfAttention
    buckets = attention._relative_position_bucket(
        keys[:, None, :] - queries[:, :, None],
        bidirectional=bidirectional,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias: Tensor = attention.relative_attention_bias(buckets)
    return bias.permute(0, 3, 1, 2)
