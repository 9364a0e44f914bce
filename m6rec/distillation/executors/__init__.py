"""Shelf of places where a teacher runs, and how a batch gets there."""

from m6rec.registry import Registry

EXECUTORS = Registry(
    "teacher",
    {
        "local": "m6rec.distillation.executors.local:LocalExecutor",
        "ray": "m6rec.distillation.executors.ray:RayExecutor",
        "remote": "m6rec.distillation.executors.remote:RemoteExecutor",
    },
    group="m6rec.teachers",
)
