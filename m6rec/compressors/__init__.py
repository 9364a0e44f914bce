"""Shelf of compressors: ways to make a run cheaper to keep or to ask."""

from m6rec.registry import Registry

COMPRESSORS = Registry(
    "compressor",
    {
        "early-exit": "m6rec.compressors.early_exit:EarlyExit",
        "prune": "m6rec.compressors.prune:Prune",
        "quantize": "m6rec.compressors.quantize:Quantize",
        "share": "m6rec.compressors.share:Share",
        "structured": "m6rec.compressors.structured:Structured",
    },
    group="m6rec.compressors",
)
