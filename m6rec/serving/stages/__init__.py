"""Shelf of stages: what is done to a request on its way."""

from m6rec.registry import Registry

STAGES = Registry(
    "stage",
    {
        "parse": "m6rec.serving.stages.parse:Parse",
        "recall_answer": "m6rec.serving.stages.recall_answer:RecallAnswer",
        "fallback": "m6rec.serving.stages.fallback:Fallback",
        "encode": "m6rec.serving.stages.encode:Encode",
        "retrieve": "m6rec.serving.stages.retrieve:Retrieve",
        "filter": "m6rec.serving.stages.filter:Filter",
        "rank": "m6rec.serving.stages.rank:Rank",
        "diversify": "m6rec.serving.stages.diversify:Diversify",
        "explain": "m6rec.serving.stages.explain:Explain",
        "score": "m6rec.serving.stages.score:Score",
        "create": "m6rec.serving.stages.create:Create",
        "chat": "m6rec.serving.stages.chat:Chat",
        "generate": "m6rec.serving.stages.generate:Generate",
        "respond": "m6rec.serving.stages.respond:Respond",
    },
    group="m6rec.serving_stages",
)
