"""Shelf of sources: where raw events and items come from."""

from m6rec.registry import Registry

SOURCES = Registry(
    "source",
    {
        "csv": "m6rec.data.sources.table:CsvSource",
        "jsonl": "m6rec.data.sources.table:JsonLinesSource",
        "parquet": "m6rec.data.sources.table:ParquetSource",
        "movielens-latest-small": "m6rec.data.sources.movielens:LatestSmall",
        "movielens-100k": "m6rec.data.sources.movielens:MovieLens100K",
        "movielens-1m": "m6rec.data.sources.movielens:MovieLens1M",
        "amazon": "m6rec.data.sources.amazon:Amazon",
        "redial": "m6rec.data.sources.redial:ReDial",
        "opendialkg": "m6rec.data.sources.opendialkg:OpenDialKG",
        "world": "m6rec.data.sources.world:World",
    },
    group="m6rec.sources",
)
