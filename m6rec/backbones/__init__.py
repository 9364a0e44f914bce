"""Shelf of backbones: pretrained language models as a walk over layers."""

from m6rec.registry import Registry

BACKBONES = Registry(
    "backbone",
    {
        "encoder": "m6rec.backbones.encoder:EncoderBackbone",
        "causal": "m6rec.backbones.causal:CausalBackbone",
        "seq2seq": "m6rec.backbones.seq2seq:Seq2SeqBackbone",
        "convolution": "m6rec.backbones.nextitnet:NextItNetBackbone",
    },
    group="m6rec.backbones",
)
