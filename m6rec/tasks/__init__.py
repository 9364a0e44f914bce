"""Shelf of tasks: what is learnt on a backbone."""

from m6rec.registry import Registry

TASKS = Registry(
    "task",
    {
        "retrieval": "m6rec.tasks.retrieval.task:Retrieval",
        "retrieval-maxsim": "m6rec.tasks.retrieval.maxsim:MaxSimRetrieval",
        "ranking": "m6rec.tasks.ranking.task:Ranking",
        "generation": "m6rec.tasks.generation.task:Generation",
        "zeroshot": "m6rec.tasks.zeroshot.task:ZeroShot",
        "conversation": "m6rec.tasks.conversation.task:Conversation",
        "pretraining": "m6rec.tasks.pretraining.task:Pretraining",
        "cold-items": "m6rec.coldstart.items:ColdItems",
        "cold-users": "m6rec.coldstart.users:ColdUsers",
    },
    group="m6rec.tasks",
)
