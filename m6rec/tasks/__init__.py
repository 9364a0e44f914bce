"""Shelf of tasks: what is learnt on a backbone."""

from m6rec.registry import Registry

TASKS = Registry(
    "task",
    {
        "retrieval": "m6rec.tasks.retrieval:Retrieval",
        "ranking": "m6rec.tasks.ranking:Ranking",
    },
    group="m6rec.tasks",
)
