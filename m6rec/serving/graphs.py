"""The recommender's graph of stages, composed from runs, plans and tiers. Knows no executor and no HTTP."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any

from m6rec.api import Recommender, load
from m6rec.compressors.exits import ExitingBackbone
from m6rec.late_interaction.cache import CacheConfig
from m6rec.late_interaction.scorer import LateScorer
from m6rec.serving.graph import Graph
from m6rec.serving.shedding import WHOLE, Ladder, Rung, SheddingConfig
from m6rec.serving.stage import Payload, Stage, StagePlan
from m6rec.serving.stages import STAGES
from m6rec.serving.stages.base import LISTS, Models, StagePlugin
from m6rec.serving.stages.filter import FilterConfig
from m6rec.serving.stages.recall_answer import RecallConfig
from m6rec.serving.storage import HotSet, QueryCache, SegmentTiers
from m6rec.serving.valkey import open_far
from m6rec.tasks.conversation.task import Conversation
from m6rec.tasks.generation.task import Generation


@dataclass(frozen=True)
class TierConfig:
    """How large the tiers are; speed and memory, but for the time that an answer is kept."""

    query_bytes: int = 32 << 20
    """L0, answers by question; 0 = every request is computed."""
    query_ttl_s: float = 60.0
    """How long an answer is as good as a new one; changes results only where time itself does."""
    recall: RecallConfig = field(default_factory=RecallConfig)
    """Which questions count as the same; changes results where it says so."""
    hot_bytes: int = 64 << 20
    """L1, segments that a log asks for most; it is empty until :func:`warm` fills it. 0 = there is none."""
    segments: CacheConfig = field(default_factory=CacheConfig)
    """Segments in memory and, behind it, on disk (L2)."""
    far: str | None = None
    """L3: address of a Valkey or Redis server that processes share, such as `redis://host:6379`; null = none."""


@dataclass(frozen=True)
class GraphConfig:
    """What is served besides the runs."""

    tiers: TierConfig = field(default_factory=TierConfig)
    """Sizes of the tiers; speed and memory."""
    shedding: SheddingConfig = field(default_factory=SheddingConfig)
    """When less is given under load; changes what is answered then."""
    candidates: tuple[int, ...] = (25, 10)
    """Candidates for the ranker on the rungs below whole service, falling; changes what is answered under load."""
    degrade: bool = True
    """Whether less is given under load at all; if not, what cannot be answered whole is refused."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """The house's rules; they change results."""
    plans: Mapping[str, StagePlan] = field(default_factory=dict)
    """Stage -> how much it gets; speed and memory."""


# Parents, where a stage runs, and how much it gets. What writes is slow and one at a time.
_WRITER = StagePlan(max_batch=1, queue_cap=8, limit_ms=120_000)
_LAYOUT: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "parse": ((), {"kind": "inline", "at_door": True}),
    "recall_answer": (("parse",), {"kind": "inline", "at_door": True}),
    "fallback": (("recall_answer",), {"kind": "inline"}),
    "encode": (("fallback",), {}),
    "retrieve": (("encode",), {"plan": StagePlan(max_batch=16)}),
    "filter": (("retrieve",), {"plan": StagePlan(max_batch=16)}),
    "rank": (("filter",), {"plan": StagePlan(max_batch=4)}),
    "diversify": (("rank",), {}),
    "explain": (("diversify",), {"plan": _WRITER}),
    "score": (("parse",), {"plan": _WRITER}),
    "create": (("parse",), {"plan": _WRITER}),
    "chat": (("parse",), {"plan": _WRITER, "streams": True}),
    "generate": (("parse",), {"plan": _WRITER, "streams": True}),
    "respond": (("explain",), {"kind": "inline"}),
}


def recommender_graph(
    recommender: Recommender, config: GraphConfig | None = None, clock: Callable[[], float] = time.monotonic
) -> Graph:
    """Return the graph of everything that a recommender's runs can do.

    Args:
        recommender: over one run or several; a ranker with late interaction reads its segments from the tiers from here
            on.
        config: tiers, ladder, rules and plans.
        clock: seconds, by which answers grow old.

    Raises:
        ConfigError: a plan for a stage that there is not.
        CacheError: the far tier cannot be reached.
    """
    chosen = config or GraphConfig()
    models = _models(recommender, chosen.tiers, clock)
    given = {"filter": chosen.filter, "recall_answer": chosen.tiers.recall}
    stages = [_stage(name, STAGES.load(name)(given.get(name), models)) for name in _LAYOUT]
    graph = Graph(
        tuple(stages),
        kinds=_kinds(recommender),
        version=models.version,
        ladder=_ladder(recommender, chosen),
        tiers=lambda: _report(models),
        close=lambda: None if models.segments is None else models.segments.close(),
        models=models,
        source=partial(reopened, tuple(str(run.folder) for run in recommender.team.runs), chosen),
    )
    return graph.planned(chosen.plans)


def reopened(runs: Sequence[str], config: GraphConfig) -> Graph:
    """Return the graph over runs that are opened for it, in another process than the server's."""
    return recommender_graph(load(*runs), config)


def version_of(recommender: Recommender) -> str:
    """Return a name for the runs of a recommender: of what they were trained on and came to."""
    digest = blake2b(digest_size=8)
    for run in recommender.team.runs:
        digest.update(repr((run.card["task"], run.card["backbone"], run.card["data"], run.card["seconds"])).encode())
    return digest.hexdigest()


def warm(graph: Graph, requests: Sequence[Mapping[str, Any]]) -> int:
    """Load the hot set from a log: the segments that ranking its requests asks for most; return how many.

    The former set is served until the new one is whole.

    Args:
        graph: with a ranker behind tiers; any other is left as it is.
        requests: for recommendations, as :meth:`~m6rec.serving.executors.base.Executor.submit` takes them.

    Raises:
        DataError: a request that cannot be read.
    """
    models, counts = graph.models, Counter[bytes]()
    if models.segments is None or models.segments.hot is None:
        return 0
    rank = graph.by_name["rank"].run
    for request in requests:
        payload: Payload = {"request": request, "kind": "recommend", "rung": WHOLE}
        for name in ("parse", "encode", "retrieve", "filter"):
            (outcome,) = graph.by_name[name].run([payload])
            if isinstance(outcome, Exception):
                raise outcome
            payload.update(outcome)
        counts.update(rank.remember(payload))
    keys = [key for key, _ in counts.most_common()]
    states = zip(keys, models.segments.get_many(keys), strict=True)
    models.segments.hot.load((key, own) for key, own in states if own is not None)
    return len(models.segments.hot)


def _stage(name: str, plugin: StagePlugin) -> Stage:
    parents, settings = _LAYOUT[name]
    bucket = {"bucket": plugin.bucket} if hasattr(plugin, "bucket") else {}
    return Stage(name, plugin, parents, wants=plugin.wants, size=plugin.size, **bucket, **settings)


def _models(recommender: Recommender, config: TierConfig, clock: Callable[[], float]) -> Models:
    models = Models(recommender, version_of(recommender))
    if config.query_bytes:
        models.answers = QueryCache(config.query_bytes, config.query_ttl_s, clock)
    scorer = None if recommender.ranker is None else recommender.ranker.backbone
    if isinstance(scorer, LateScorer):
        far = None if config.far is None else open_far(config.far, scorer.version)
        hot = HotSet(config.hot_bytes) if config.hot_bytes else None
        models.segments = SegmentTiers(scorer.version, config.segments, hot, far)
        scorer.use(models.segments)
    return models


def _kinds(recommender: Recommender) -> frozenset[str]:
    team = recommender.team
    tasks = [run.task for run in team.runs]
    can = {
        "recommend": team.can_retrieve,
        "retrieve": team.can_retrieve,
        "rank": team.can_rank,
        "explain": any(isinstance(task, Generation) and task.kind == "explanation" for task in tasks),
        "create": any(isinstance(task, Generation) for task in tasks),
        "chat": any(isinstance(task, Conversation) for task in tasks),
        "score": team.can_speak,
        "generate": team.can_speak,
    }
    return frozenset(kind for kind, possible in can.items() if possible)


def _ladder(recommender: Recommender, config: GraphConfig) -> Ladder:
    if not config.degrade:
        return Ladder((WHOLE,), config.shedding)
    ranker = recommender.ranker
    counts = () if ranker is None else config.candidates
    fewer = [Rung(f"candidates-{count}", count, kinds=("recommend",)) for count in counts]
    if ranker is not None and isinstance(ranker.backbone, ExitingBackbone):
        depth = max(1, ranker.backbone.num_layers // 2)
        least = config.candidates[-1] if config.candidates else None
        fewer.append(Rung(f"depth-{depth}", least, depth, kinds=("recommend", "rank")))
    last = [Rung("popular", model=False, kinds=LISTS)] if recommender.team.can_retrieve else []
    return Ladder((WHOLE, *fewer, *last), config.shedding)


def _report(models: Models) -> dict[str, Any]:
    tiers = {} if models.answers is None else {"query": models.answers.report()}
    return tiers if models.segments is None else tiers | models.segments.report()
