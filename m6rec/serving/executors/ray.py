"""The same graph with its stages on Ray Serve: a stage is a deployment, wherever the cluster has room for it.

What decides (admission, deadlines, batches, joins, the ladder) is the scheduler that serves locally, in front of the
replicas; Ray places them, watches them, replaces the dead, and makes more under load. Knows no model.
"""

import asyncio
import contextlib
import itertools
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from m6rec.errors import ConfigError, OverloadedError, StageError, needs
from m6rec.serving.executors import EXECUTORS
from m6rec.serving.executors.base import Answer, Executor
from m6rec.serving.graph import Graph
from m6rec.serving.stage import Payload, Stage, Update

logger = logging.getLogger(__name__)
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class RayConfig:
    """Settings of :class:`RayExecutor`.

    Raises:
        ConfigError: lists every impossible value at once.
    """

    deadline_ms: float = 1000.0
    """How long a request may take that does not say so itself; changes which requests are refused or late."""
    here: tuple[str, ...] = ("encode", "retrieve", "filter")
    """Stages that stay in this process: those that read a catalogue which changes, for a replica has it as it was."""
    most_replicas: int = 4
    """Replicas that a stage grows to under load; it begins with as many as its plan has workers. Speed and memory."""
    cpus: float = 1.0
    """Cores that Ray reserves for a replica, or less where the cluster has less; speed only."""
    tries: int = 4
    """How often a batch is sent before its requests fail, where replicas die under it."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: got {getattr(self, name)}, expected more than 0"
            for name in ("deadline_ms", "most_replicas", "cpus", "tries")
            if getattr(self, name) <= 0
        ]
        if problems:
            raise ConfigError("\n".join(problems))


class RayExecutor:
    """Runs a graph's stages as deployments of Ray Serve, behind a scheduler in this process.

    Every replica makes the graph anew by ``graph.source`` where there is one; otherwise it is sent the stage.

    Args:
        graph: what is served.
        config: defaults of requests, and what Ray may take.

    Raises:
        MissingExtraError: Ray is not installed.

    **Differs:** batches are not made by ``serve.batch``, which knows no deadline, but by the scheduler in front.
    """

    Config = RayConfig
    name = "ray"

    def __init__(self, graph: Graph, config: RayConfig | None = None) -> None:
        with needs("ray"):
            import ray.serve  # noqa: F401 (said now, not at the first request)
        self.graph, self.config = graph, config or RayConfig()
        self._stages: _Deployed | None = None
        self._front: Executor | None = None
        self._own_ray = False

    async def start(self) -> None:
        """Deploy every stage, on the Ray of this process or else one that is begun, and wait until all are ready."""
        import ray

        self._own_ray = not ray.is_initialized()
        with _signals_kept():
            self._stages = await asyncio.to_thread(_Deployed, self.graph, self.config)
        front = EXECUTORS.load("local")
        self._front = front(self._stages.graph, front.Config(deadline_ms=self.config.deadline_ms))
        await self._front.start()

    async def submit(
        self, request: Mapping[str, Any], *, deadline_ms: float | None = None, kind: str = "recommend"
    ) -> Answer:
        """Return the answer to one request (see :class:`~m6rec.serving.executors.base.Executor`)."""
        return await self._open().submit(request, deadline_ms=deadline_ms, kind=kind)

    def stream(
        self, request: Mapping[str, Any], *, deadline_ms: float | None = None, kind: str = "generate"
    ) -> AsyncIterator[str | Answer]:
        """Yield an answer's text in pieces, and at the end the answer whole."""
        return self._open().stream(request, deadline_ms=deadline_ms, kind=kind)

    async def swap(self, graph: Graph) -> None:
        """Deploy another graph beside the former one, serve it, and take the former down once it is empty."""
        front, former = self._open(), self._stages
        self._stages = await asyncio.to_thread(_Deployed, graph, self.config)
        self.graph = graph
        await front.swap(self._stages.graph)
        if former is not None:
            await asyncio.to_thread(former.remove)

    async def drain(self, timeout_s: float = 30.0) -> None:
        """Take no more requests, finish those under way, take all deployments down."""
        front, self._front = self._front, None
        if front is not None:
            await front.drain(timeout_s)
        if self._stages is not None:
            await asyncio.to_thread(self._stages.remove)
            self._stages = None
        if self._own_ray:
            await asyncio.to_thread(_leave)
            self._own_ray = False

    def report(self) -> dict[str, Any]:
        """Return figures as plain values (see :class:`~m6rec.serving.executors.base.Executor`)."""
        return {"ready": False, "version": self.graph.version} if self._front is None else self._front.report()

    def _open(self) -> Executor:
        if self._front is None:
            raise OverloadedError("the server takes no requests", 1.0)
        return self._front


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back what SIGINT and SIGTERM did: Ray's own handlers end the process, and with it whoever is still served."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in former.items():
            signal.signal(number, handler)


def _leave() -> None:
    """End what was begun; Ray Serve's threads would begin it again if they outlived it."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


class _Deployed:
    """A graph whose stages are on Ray.

    Args:
        graph: with stages here.
        config: what Ray may take.

    Attributes:
        graph: the same, each deployed stage's ``run`` a call to its replicas.
    """

    def __init__(self, graph: Graph, config: RayConfig) -> None:
        from ray import serve

        serve.start(proxy_location="Disabled")
        away = [stage for stage in graph.stages if _goes_away(graph, stage, config)]
        cpus = _cores_each(sum(stage.plan.workers for stage in away), config.cpus)
        prefix = f"m6rec-{next(_NUMBERS)}"
        self.names: list[str] = []
        runs = {}
        for stage in away:
            self.names.append(f"{prefix}-{stage.name}")
            application = _deployment(graph, stage, config, cpus)
            handle = serve.run(application, name=self.names[-1], route_prefix=None)
            runs[stage.name] = (_RemoteStream if stage.streams else _Remote)(handle, config.tries)
        self.graph = replace(
            graph, stages=tuple(_called(stage, runs.get(stage.name), config) for stage in graph.stages)
        )

    def remove(self) -> None:
        """Take all deployments down."""
        from ray import serve

        for name in self.names:
            serve.delete(name)


def _called(stage: Stage, run: Any, config: RayConfig) -> Stage:
    """Return a stage that asks its replicas, of as many batches at once as there may be replicas."""
    if run is None:
        return stage
    return replace(stage, run=run, kind="thread", plan=replace(stage.plan, workers=_most(stage, config)))


def _most(stage: Stage, config: RayConfig) -> int:
    """Return how many replicas a stage grows to."""
    return max(stage.plan.workers, config.most_replicas)


def _goes_away(graph: Graph, stage: Stage, config: RayConfig) -> bool:
    """Whether a stage gets processes: not one that a bare request of any kind passes by."""
    if stage.kind == "inline" or stage.name in config.here:
        return False
    rung = graph.ladder.rungs[0]
    return any(stage.wants({"request": {}, "kind": kind, "rung": rung}) for kind in graph.kinds)


def _cores_each(replicas: int, wanted: float) -> float:
    """Return the cores that each replica reserves, so that all have room: Ray would wait for more without an end."""
    import ray

    # What is free, less what the next graph of a swap may need beside this one.
    free = ray.available_resources().get("CPU", 0.0) / 2
    return min(wanted, round(free / max(1, replicas), 3))


def _deployment(graph: Graph, stage: Stage, config: RayConfig, cpus: float) -> Any:
    """Return a stage as an application of Ray Serve."""
    from ray import serve

    plan = stage.plan
    least, most = plan.workers, _most(stage, config)
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 1}
    deployment = serve.deployment(
        Replica,
        name=stage.name,
        max_ongoing_requests=1,  # a batch at a time: more in one process would only share its cores
        max_queued_requests=plan.queue_cap,
        autoscaling_config=scaling,
        ray_actor_options={"num_cpus": cpus},
    )
    return deployment.bind(graph.source, stage.name) if graph.source else deployment.bind(None, stage.name, stage.run)


class Replica:
    """What Ray keeps in a process: one stage.

    Args:
        source: makes the graph; ``None`` = the stage comes along.
        name: of the stage.
        run: what it does.
    """

    def __init__(self, source: Any, name: str, run: Any = None) -> None:
        self._run = run if source is None else source().by_name[name].run

    def __call__(self, payloads: list[Payload]) -> list[Update | Exception] | Exception:
        """Return what the stage gives for a batch; an error as a value, for Ray's own have other classes."""
        try:
            return list(self._run(payloads))
        except Exception as error:  # noqa: BLE001 - raised again where the batch came from
            return error

    def stream(self, payload: Payload) -> Iterator[str | Update | Exception]:
        """Yield what the stage writes, and at the end its update."""
        try:
            yield from self._run(payload)
        except Exception as error:  # noqa: BLE001 - raised again where the request came from
            yield error


class _Remote:
    """A stage's ``run`` that asks the replicas, and asks again where one dies under it.

    Args:
        handle: of the deployment.
        tries: how often, at most.
    """

    def __init__(self, handle: Any, tries: int) -> None:
        self.handle, self.tries = handle, tries

    def __call__(self, payloads: Sequence[Payload]) -> Sequence[Update | Exception]:
        found = self._asked(list(payloads))
        if isinstance(found, Exception):
            raise found
        return found

    def _asked(self, payloads: list[Payload]) -> list[Update | Exception] | Exception:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        for _ in range(self.tries):
            try:
                found: list[Update | Exception] | Exception = self.handle.remote(payloads).result()
                return found
            except RayActorError:
                logger.warning("a replica of stage %s died; its batch is sent again", self.handle.deployment_name)
            except BackPressureError as error:
                raise OverloadedError(f"stage {self.handle.deployment_name!r} has a full queue", 1.0) from error
        raise StageError(self.handle.deployment_name, f"lost {self.tries} replicas over one batch")


class _RemoteStream(_Remote):
    """The same for a stage that streams; one whose first piece is out cannot be begun again."""

    def __call__(self, payload: Payload) -> Iterator[str | Update]:  # type: ignore[override]
        from ray.exceptions import RayActorError

        pieces = self.handle.options(stream=True).stream.remote(payload)
        try:
            for piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        except RayActorError as error:
            raise StageError(self.handle.deployment_name, "lost its replica in the middle of a text") from error
        finally:
            pieces.cancel()
