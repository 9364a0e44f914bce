"""Shelf of tasks: what is learnt on a backbone."""

from m6rec.registry import Registry

TASKS = Registry(
    "task",
    {
        "retrieval": "m6rec.tasks.retrieval:Retrieval",
        "ranking": "m6rec.tasks.ranking:Ranking",
        "generation": "m6rec.tasks.generation:Generation",
        "zeroshot": "m6rec.tasks.zeroshot:ZeroShot",
        "conversation": "m6rec.tasks.conversation:Conversation",
        "pretraining": "m6rec.tasks.pretraining:Pretraining",
        "cold-items": "m6rec.coldstart.items:ColdItems",
        "cold-users": "m6rec.coldstart.users:ColdUsers",
    },
    group="m6rec.tasks",
)
