"""Shelf of indexes: nearest items to a vector."""

from m6rec.registry import Registry

INDEXES = Registry(
    "index",
    {
        "exact": "m6rec.indexes.exact:ExactIndex",
        "faiss": "m6rec.indexes.faiss:FaissIndex",
        "multivector": "m6rec.indexes.multivector:MultiVectorIndex",
    },
    group="m6rec.indexes",
)
