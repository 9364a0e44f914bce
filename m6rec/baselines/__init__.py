"""Shelf of baselines: what every figure of ours must be read beside."""

from m6rec.registry import Registry

BASELINES = Registry(
    "baseline",
    {
        "popularity": "m6rec.baselines.popularity:Popularity",
        "itemknn": "m6rec.baselines.itemknn:ItemKNN",
        "markov": "m6rec.baselines.markov:Markov",
        "als": "m6rec.baselines.als:ALS",
        "sasrec": "m6rec.baselines.sasrec:SASRec",
        "nextitnet": "m6rec.baselines.nextitnet:NextItNet",
        "rate": "m6rec.baselines.rate:Rate",
        "din": "m6rec.baselines.din:DIN",
    },
    group="m6rec.baselines",
)
