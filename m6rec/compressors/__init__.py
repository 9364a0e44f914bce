"""Shelf of compressors: ways to make a run cheaper to keep or to ask."""

from m6rec.registry import Registry

COMPRESSORS = Registry(
    "compressor",
    {
        "early-exit": "m6rec.compressors.early_exit:EarlyExit",
        "quantize": "m6rec.compressors.quantize:Quantize",
    },
    group="m6rec.compressors",
)
