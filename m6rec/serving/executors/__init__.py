"""Shelf of executors: what runs a graph of stages."""

from m6rec.registry import Registry

EXECUTORS = Registry(
    "executor",
    {
        "local": "m6rec.serving.executors.local:LocalExecutor",
        "ray": "m6rec.serving.executors.ray:RayExecutor",
    },
    group="m6rec.executors",
)
