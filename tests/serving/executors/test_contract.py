"""Both executors keep the contract; on Ray, a killed replica costs no wrong answer."""

import asyncio

import pytest

from m6rec.serving.executors.local import LocalExecutor
from tests.contracts.executor_contract import ExecutorContract, Host, diamond, expected


class TestLocal(ExecutorContract):
    def make(self, graph):
        return LocalExecutor(graph)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
class TestRay(ExecutorContract):
    def make(self, graph):
        from m6rec.serving.executors.ray import RayConfig, RayExecutor

        return RayExecutor(graph, RayConfig(here=("square", "join"), most_replicas=1, cpus=0.1))


@pytest.mark.slow
def test_a_killed_replica_costs_no_wrong_answer(ray_cluster):
    from m6rec.serving.executors.ray import RayConfig, RayExecutor

    host = Host(RayExecutor(diamond(workers=2, queue_cap=300), RayConfig(here=("square", "join"), cpus=0.1)))
    numbers = [n for n in range(200) if n not in (13, 14, 15)]

    async def under_fire():
        asking = [asyncio.ensure_future(host.one(n)) for n in numbers]
        await asyncio.sleep(0.05)
        killed = await asyncio.to_thread(_kill_one, ray_cluster)
        return killed, await asyncio.gather(*asking)

    killed, answers = host.run(under_fire())
    host.close()
    assert killed
    assert [answer["sum"] for answer in answers] == [expected(n) for n in numbers]


@pytest.mark.slow
def test_the_recommenders_own_graph_answers_alike_on_both(ray_cluster, retrieval_run, ranking_run):
    import m6rec
    from m6rec.serving.executors.ray import RayConfig, RayExecutor
    from m6rec.serving.graphs import GraphConfig, TierConfig, recommender_graph

    recommender = m6rec.load(retrieval_run, ranking_run)
    graph = recommender_graph(recommender, GraphConfig(tiers=TierConfig(query_bytes=0)))
    histories = ["red shirt; blue lamp", [], [{"item": "g05", "verb": "buy", "time": 1_600_000_000}], ["new-1", "g01"]]
    hosts = [Host(LocalExecutor(graph)), Host(RayExecutor(graph, RayConfig(most_replicas=1, cpus=0.1)))]
    recommender.catalog.add([{"id": "new-1", "title": "a soft lamp"}])  # the replicas stand already
    found = []
    for host in hosts:
        executor = host.executor
        asking = [executor.submit({"history": each, "k": 5}, deadline_ms=60_000) for each in histories]
        found.append([answer["items"] for answer in host.run(_all(asking))])
        host.close()
    assert [len(items) for items in found[0]] == [5] * 4
    for here, there in zip(*found, strict=True):
        assert [item["id"] for item in here] == [item["id"] for item in there]
        assert [item["score"] for item in here] == pytest.approx([item["score"] for item in there], abs=1e-6)


async def _all(asking):
    return await asyncio.gather(*asking)


def _kill_one(ray):
    names = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "#double#" in actor["name"]]
    ray.kill(ray.get_actor(**names[0]))
    return names[0]["name"]
