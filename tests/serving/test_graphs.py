import asyncio
import contextlib
import json
import sqlite3
from dataclasses import replace

import numpy as np
import pytest

import m6rec
from m6rec.errors import ConfigError, DataError, StageError
from m6rec.late_interaction.cache import CacheConfig
from m6rec.serving.executors.local import LocalExecutor
from m6rec.serving.graphs import GraphConfig, TierConfig, recommender_graph, warm
from m6rec.serving.planning.request_log import LoggedExecutor, RequestLogger, kept_requests, read_log
from m6rec.serving.shedding import Rung
from m6rec.serving.stage import StagePlan
from m6rec.serving.stages.filter import FilterConfig
from m6rec.serving.stages.recall_answer import RecallConfig
from tests.little_shop import SMALL

HISTORY = [
    {"item": "g03", "verb": "view", "time": 1_600_000_000},
    {"item": "g04", "verb": "buy", "time": 1_600_009_000},
]
HISTORIES = [
    HISTORY,
    ["red shirt", "blue lamp"],
    "green book; soft chair; a thing nobody sells",
    [],
    [{"query": "lamp"}],
]
BARE = TierConfig(query_bytes=0)
SLOW = 60_000


@pytest.fixture(scope="module")
def late_run(shop, tiny_folder, tmp_path_factory):
    """Return a finished ranking run with late interaction on the little shop."""
    from m6rec.assemble import train_run
    from m6rec.recipe import read_recipe

    out = tmp_path_factory.mktemp("late") / "ranking"
    words = [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}", *SMALL["ranking"]]
    train_run(read_recipe("ranking-late", [*words, "training.evaluate_every=3"]))
    return out


@pytest.fixture
def recommender(retrieval_run, late_run):
    return m6rec.load(retrieval_run, late_run)


def served(graph, body):
    async def whole():
        executor = LocalExecutor(graph)
        await executor.start()
        try:
            return await body(executor)
        finally:
            await executor.drain(5)

    return asyncio.run(asyncio.wait_for(whole(), 120))


def answers_of(graph, requests, kind="recommend", errors=False):
    async def body(executor):
        asking = (executor.submit(request, kind=kind, deadline_ms=SLOW) for request in requests)
        return await asyncio.gather(*asking, return_exceptions=errors)

    return served(graph, body)


def ids(items):
    return [item["id"] if isinstance(item, dict) else item.id for item in items]


def scores(items):
    return [item["score"] if isinstance(item, dict) else item.score for item in items]


def test_a_list_is_what_the_recommender_itself_gives(recommender, retrieval_run, late_run):
    plain = m6rec.load(retrieval_run, late_run)
    graph = recommender_graph(recommender, GraphConfig(BARE))
    answers = answers_of(graph, [{"history": history, "k": 7} for history in HISTORIES])
    for history, answer in zip(HISTORIES, answers, strict=True):
        expected = plain.recommend(history, 7)
        assert ids(answer["items"]) == ids(expected)
        np.testing.assert_allclose(scores(answer["items"]), scores(expected), atol=1e-5)
        assert answer["rung"] == "full"
    json.dumps(answers)


def test_one_batch_gives_what_single_requests_give(recommender):
    graph = recommender_graph(recommender, GraphConfig(BARE))
    alone = graph.planned({name: StagePlan(max_batch=1) for name in ("encode", "retrieve", "filter", "rank")})
    requests = [{"history": history, "k": 5} for history in HISTORIES]
    single, together = answers_of(alone, requests), answers_of(graph, requests)
    assert [ids(answer["items"]) for answer in together] == [ids(answer["items"]) for answer in single]
    np.testing.assert_allclose(
        [scores(answer["items"]) for answer in together], [scores(answer["items"]) for answer in single], atol=1e-5
    )


def test_retrieving_alone_and_ranking_alone(recommender, retrieval_run, late_run):
    plain = m6rec.load(retrieval_run, late_run)
    graph = recommender_graph(recommender)
    (found,) = answers_of(graph, [{"history": HISTORY, "k": 12}], "retrieve")
    assert ids(found["items"]) == ids(plain.retrieve(HISTORY, 12))
    candidates = ["g01", "blue lamp", {"title": "yellow teapot"}, "g01", "g20"]
    (ranked,) = answers_of(graph, [{"history": HISTORY, "candidates": candidates}], "rank")
    expected = plain.rank(HISTORY, candidates[:3] + candidates[4:])
    assert ids(ranked["items"]) == ids(expected)
    np.testing.assert_allclose(scores(ranked["items"]), scores(expected), atol=1e-5)


def test_a_retrieval_run_alone_makes_a_graph_too(retrieval_run):
    graph = recommender_graph(m6rec.load(retrieval_run))
    assert graph.kinds == {"recommend", "retrieve"}
    (answer,) = answers_of(graph, [{"history": HISTORY, "k": 4}])
    assert ids(answer["items"]) == ids(m6rec.load(retrieval_run).recommend(HISTORY, 4))
    with pytest.raises(ConfigError, match="unknown kind of request 'rank'"):
        answers_of(graph, [{"candidates": ["g01"]}], "rank")


@pytest.mark.parametrize(
    ("asked", "rules", "kept"),
    [
        ({"block": ["g05", "red lamp"]}, (), lambda item: item["key"] not in ("g05", "g03")),
        ({"allow": ["g07", "g08", "g30", "nobody's"]}, (), lambda item: item["key"] in ("g07", "g08", "g30")),
        ({}, ("price<=12", "brand!=green"), lambda item: float(item["price"]) <= 12 and item["brand"] != "green"),
        ({"exclude_history": False}, (), lambda item: True),
    ],
)
def test_filtering_gives_the_list_of_a_catalogue_without_the_rest(retrieval_run, asked, rules, kept):
    recommender = m6rec.load(retrieval_run)
    graph = recommender_graph(recommender, GraphConfig(BARE, filter=FilterConfig(rules)))
    (answer,) = answers_of(graph, [{"history": ["g33", "g34"], "k": 9, **asked}])
    everything = recommender.retrieve(["g33", "g34"], 36, exclude_history=asked.get("exclude_history", True))
    record = {
        key: recommender.run.task.catalogue.record(place)
        for place, key in enumerate(recommender.run.task.catalogue.keys)
    }
    expected = [item for item in everything if kept(record[item.id])][:9]
    assert ids(answer["items"]) == ids(expected)
    np.testing.assert_allclose(scores(answer["items"]), scores(expected), rtol=1e-5)


def test_the_same_question_is_answered_from_the_cache_until_the_catalogue_changes(recommender):
    graph = recommender_graph(recommender)

    async def body(executor):
        async def ask():
            return await executor.submit({"history": ["g05"], "k": 36}, deadline_ms=SLOW)

        first, second = await ask(), await ask()
        recommender.catalog.add([{"id": "new", "title": "yellow teapot"}])
        third = await ask()
        recommender.catalog.remove(["new"])
        return first, second, third, await ask(), executor.report()

    first, second, third, fourth, report = served(graph, body)
    assert (first["rung"], second["rung"], third["rung"]) == ("full", "cache", "full")
    assert second["items"] == first["items"]
    assert second["trace"]["recall_answer"]["hit"]
    assert "new" in ids(third["items"])
    assert "new" not in ids(fourth["items"])
    assert report["tiers"]["query"]["hits"] == 1
    assert report["rungs"] == {"full": 3, "cache": 1}


def test_an_answer_from_before_the_newest_events_may_count_as_new_without_what_was_met(recommender):
    tiers = TierConfig(recall=RecallConfig(events=2))
    graph = recommender_graph(recommender, GraphConfig(tiers))
    whole = ("parse", "recall_answer", "encode", "retrieve", "filter", "rank", "respond")
    full = graph.ladder.rungs[0]
    first = walked(graph, full, whole, history=HISTORY, k=4)
    shown = first["answer"]["items"]
    grown = [*HISTORY, shown[1], {"item": "g20"}]
    again = walked(graph, full, ("parse", "recall_answer"), history=grown, k=4)
    assert again["made_by"] == "cache"
    kept = graph.models.answers.get([first["query"]], graph.models.revision)["items"]
    assert ids(kept)[:4] == ids(shown)
    expected = [key for key in ids(kept) if key not in (shown[1]["id"], "g20")]
    assert ids(again["answer"]["items"]) == expected[:4]
    other = walked(graph, full, ("parse", "recall_answer"), history=[*grown, "g21"], k=4)
    assert "answer" not in other  # three events since
    fewer = walked(graph, full, ("parse", "recall_answer"), history=grown, k=3)
    assert "answer" not in fewer  # another question


def test_a_former_list_is_found_again_though_the_clients_window_slides(recommender):
    graph = recommender_graph(recommender, GraphConfig(TierConfig(recall=RecallConfig(events=1))))
    whole = ("parse", "recall_answer", "encode", "retrieve", "filter", "rank", "respond")
    events = [f"g{number:02d}" for number in range(25)]
    walked(graph, graph.ladder.rungs[0], whole, history=events[:24], k=4)
    again = walked(graph, graph.ladder.rungs[0], ("parse", "recall_answer"), history=events[1:25], k=4)
    assert again["made_by"] == "cache"
    assert not set(ids(again["answer"]["items"])) & set(events[1:25])


def test_identical_questions_at_once_are_computed_once(recommender):
    answers = answers_of(recommender_graph(recommender), [{"history": ["g05"], "k": 5}] * 20)
    assert len({json.dumps(answer["items"]) for answer in answers}) == 1
    assert sum(answer["trace"]["rank"]["batch"] for answer in answers) == 20  # one run, told to twenty


def payload_of(rung, **request):
    return {"request": request, "kind": "recommend", "rung": rung}


def walked(graph, rung, names, **request):
    payload = payload_of(rung, **request)
    for name in names:
        if graph.by_name[name].wants(payload):
            payload.update(graph.by_name[name].run([payload])[0])
    return payload


def test_fewer_candidates_reach_the_ranker_down_the_ladder(recommender):
    graph = recommender_graph(recommender, GraphConfig(BARE, candidates=(8, 3)))
    assert [rung.name for rung in graph.ladder.rungs] == ["full", "candidates-8", "candidates-3", "popular"]
    names = ("parse", "encode", "retrieve", "filter", "rank", "respond")
    for rung, expected in zip(graph.ladder.rungs, (34, 8, 3), strict=False):
        payload = walked(graph, rung, names, history=HISTORY, k=2)
        assert len(payload["found"]) == expected
        assert graph.by_name["rank"].size(payload) == expected
        assert len(payload["answer"]["items"]) == 2


def test_only_lists_are_given_less(recommender):
    ladder = recommender_graph(recommender, GraphConfig(BARE, candidates=(8, 3))).ladder
    names = {kind: [ladder.rungs[number].name for number in ladder.down(kind, 0)] for kind in ("retrieve", "rank")}
    assert names == {"retrieve": ["full", "popular"], "rank": ["full"]}


def test_without_a_model_there_is_what_the_user_was_given_lately_or_what_anybody_gets(recommender):
    graph = recommender_graph(recommender)
    popular = graph.ladder.rungs[-1]
    names = ("parse", "recall_answer", "fallback")
    anybody = walked(graph, popular, names, history=HISTORY, k=4)
    assert ids(anybody["answer"]["items"]) == ids(m6rec_nearest(recommender, {"g03", "g04"}, 4))
    whole = ("parse", "encode", "retrieve", "filter", "rank", "respond")
    before = walked(graph, graph.ladder.rungs[0], whole, history=HISTORY, k=4)
    gone = before["answer"]["items"][1]["id"]
    recommender.catalog.remove([gone])
    grown = [*HISTORY, {"item": before["answer"]["items"][0]["id"]}]
    stale = walked(graph, popular, names, history=grown, k=4)
    assert stale["made_by"] == "stale"
    ranked = [record["key"] for record, _ in before["found"]]
    assert ids(stale["answer"]["items"]) == ranked[2:6]


def m6rec_nearest(recommender, seen, k):
    return [item for item in recommender.retrieve([], 36) if item.id not in seen][:k]


def test_what_is_made_with_less_is_not_kept_as_if_it_were_whole(recommender):
    graph = recommender_graph(recommender, GraphConfig(candidates=(3,)))
    names = ("parse", "recall_answer", "encode", "retrieve", "filter", "rank", "respond")
    walked(graph, graph.ladder.rungs[1], names, history=HISTORY, k=2)
    assert graph.models.answers.report()["used_bytes"] == 0


def test_diversity_changes_the_order_as_it_should(recommender):
    graph = recommender_graph(recommender, GraphConfig(BARE))
    requests = [{"history": HISTORY, "k": 8, "diversity": share} for share in (0.0, 0.7)]
    plain, spread = answers_of(graph, requests)
    assert ids(plain["items"])[0] == ids(spread["items"])[0]
    assert likeness(recommender, spread) < likeness(recommender, plain)


def likeness(recommender, answer):
    places = [recommender.catalog.retrieval.catalogue.find(key) for key in ids(answer["items"])]
    texts = recommender.catalog.space.texts[places].numpy()
    return float((texts @ texts.T).mean())


def test_a_warm_hot_set_answers_the_same_and_reads_nothing_anew(retrieval_run, late_run):
    log = [{"history": history} for history in HISTORIES]
    cold = recommender_graph(m6rec.load(retrieval_run, late_run), GraphConfig(BARE))
    expected = answers_of(cold, log)
    graph = recommender_graph(m6rec.load(retrieval_run, late_run), GraphConfig(BARE))
    assert warm(graph, log) == len(graph.models.segments.hot) > 30
    before = graph.tiers()
    answers = answers_of(graph, log)
    assert [ids(answer["items"]) for answer in answers] == [ids(answer["items"]) for answer in expected]
    for answer, other in zip(answers, expected, strict=True):
        np.testing.assert_allclose(scores(answer["items"]), scores(other["items"]), atol=1e-5)
    assert graph.tiers()["hot"]["misses"] == before["hot"]["misses"]
    assert graph.tiers()["memory"] == before["memory"]
    assert answers[0]["trace"]["rank"]["segments_cached"] == answers[0]["trace"]["rank"]["segments"]


def test_a_request_log_warms_a_server_up(recommender, tmp_path):
    graph = recommender_graph(recommender)

    async def traffic():
        executor = LoggedExecutor(LocalExecutor(graph), RequestLogger(tmp_path / "log", keep_requests=True))
        await executor.start()
        await executor.submit({"history": HISTORY}, deadline_ms=SLOW)
        with pytest.raises(DataError):
            await executor.submit({"history": 3}, deadline_ms=SLOW)
        await executor.drain(5)

    asyncio.run(traffic())
    requests = kept_requests(read_log(tmp_path / "log"))
    assert requests == [{"history": HISTORY}]
    assert warm(graph, requests) == len(graph.models.segments.hot) > 10


def test_a_poisoned_cache_file_costs_no_request(retrieval_run, late_run, tmp_path):
    path = tmp_path / "segments.sqlite"
    tiers = TierConfig(query_bytes=0, hot_bytes=0, segments=CacheConfig(memory_bytes=0, disk=str(path)))
    requests = [{"history": history} for history in HISTORIES]
    expected = answers_of(recommender_graph(m6rec.load(retrieval_run, late_run), GraphConfig(tiers)), requests)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE states SET value = zeroblob(length(value))")
    graph = recommender_graph(m6rec.load(retrieval_run, late_run), GraphConfig(tiers))
    answers = answers_of(graph, requests)
    assert [ids(answer["items"]) for answer in answers] == [ids(answer["items"]) for answer in expected]
    assert graph.models.segments.failed == ["disk"]
    for leftover in path.parent.glob("segments.sqlite-*"):
        leftover.unlink()
    path.write_bytes(b"no database at all" * 100)
    graph = recommender_graph(m6rec.load(retrieval_run, late_run), GraphConfig(tiers))
    assert ids(answers_of(graph, requests)[0]["items"]) == ids(expected[0]["items"])


@pytest.mark.parametrize(
    ("kind", "request_", "words"),
    [
        ("recommend", {"history": 3}, "got a history of type int"),
        ("recommend", {"history": [{"verb": "buy"}]}, "event 1 of the history"),
        ("recommend", {"k": 0}, "expected 1 to 1000"),
        ("recommend", {"k": "ten"}, "got 'ten'"),
        ("recommend", {"block": "g01"}, "block: got str, expected a list"),
        ("recommend", {"history": ["\ud800"]}, "no Unicode"),
        ("recommend", {"history": ["g01"] * 10_001}, "history of 10001 events"),
        ("rank", {"candidates": ["g01"] * 2_001}, "candidates: got 2001 items"),
        ("rank", {}, "candidates: got NoneType"),
        ("rank", {"candidates": [{"id": "?"}]}, "neither known nor described"),
    ],
)
def test_bad_requests_are_told_what_is_wrong_and_others_go_on(recommender, kind, request_, words):
    graph = recommender_graph(recommender)

    async def body(executor):
        good = executor.submit({"history": HISTORY}, deadline_ms=SLOW)
        bad = executor.submit(request_, kind=kind, deadline_ms=SLOW)
        return await asyncio.gather(bad, good, return_exceptions=True)

    bad, good = served(graph, body)
    assert isinstance(bad, DataError | ConfigError)
    assert words in str(bad)
    assert good["items"]


def test_a_very_long_history_and_very_many_candidates_are_answered(recommender, retrieval_run, late_run):
    graph = recommender_graph(recommender)
    long = [f"g{number % 30:02d}" for number in range(5_000)]
    (answer,) = answers_of(graph, [{"history": long, "k": 5}])
    assert set(ids(answer["items"])) <= {f"g{number}" for number in range(30, 36)}
    many = [f"g{number % 36:02d}" for number in range(2_000)]
    (ranked,) = answers_of(graph, [{"history": HISTORY, "candidates": many}], "rank")
    assert len(ranked["items"]) == 36
    assert ids(ranked["items"]) == ids(m6rec.load(retrieval_run, late_run).rank(HISTORY, many[:36]))


def test_a_model_that_raises_on_one_request_leaves_the_others_alone(recommender, monkeypatch):
    graph = recommender_graph(recommender, GraphConfig(BARE))
    real = recommender.catalog.users

    def users(histories):
        if any(event["item"].get("title") == "poison" for events in histories for event in events):
            raise RuntimeError("shapes do not fit")
        return real(histories)

    monkeypatch.setattr(recommender.catalog, "users", users)
    answers = answers_of(graph, [{"history": [title]} for title in ("g01", "poison", "g02")], errors=True)
    assert isinstance(answers[1], StageError)
    assert answers[0]["items"]
    assert answers[2]["items"]


def test_versions_differ_by_their_runs_and_a_swap_under_load_mixes_nothing(retrieval_run, late_run, ranking_run):
    one = recommender_graph(m6rec.load(retrieval_run, late_run))
    other = recommender_graph(m6rec.load(retrieval_run, ranking_run))
    assert one.version != other.version

    async def body(executor):
        answers, stop = [], asyncio.Event()

        async def client(number):
            while not stop.is_set():
                history = [f"g{(number + len(answers)) % 36:02d}"]
                answers.append((history, await executor.submit({"history": history, "k": 3}, deadline_ms=SLOW)))

        clients = [asyncio.create_task(client(number)) for number in range(3)]
        await asyncio.sleep(0.3)
        await executor.swap(other)
        await asyncio.sleep(0.3)
        stop.set()
        await asyncio.gather(*clients)
        return answers

    answers = served(one, body)
    assert {answer["version"] for _, answer in answers} == {one.version, other.version}
    plain = {one.version: m6rec.load(retrieval_run, late_run), other.version: m6rec.load(retrieval_run, ranking_run)}
    for history, answer in [answers[0], answers[-1]]:
        assert ids(answer["items"]) == ids(plain[answer["version"]].recommend(history, 3))


def test_a_ranker_with_exits_runs_fewer_layers_down_the_ladder_and_all_of_them_again_afterwards(
    shop, tiny_folder, retrieval_run, tmp_path
):
    from m6rec.assemble import train_run
    from m6rec.recipe import read_recipe

    words = [f"data={shop}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", *SMALL["ranking"]]
    train_run(read_recipe("ranking", [*words, "exits.weights=rising"]))
    recommender = m6rec.load(retrieval_run, tmp_path / "run")
    graph = recommender_graph(recommender, GraphConfig(BARE, candidates=(8,)))
    whole, fewer, shallow, _ = graph.ladder.rungs
    assert (shallow.name, shallow.candidates, shallow.depth) == ("depth-1", 8, 1)
    names = ("parse", "encode", "retrieve", "filter", "rank")
    found = {rung.name: walked(graph, rung, names, history=HISTORY)["found"] for rung in (shallow, fewer, whole)}
    backbone = recommender.ranker.backbone
    backbone.set(replace(backbone.config, depth=1))
    keys = [record["key"] for record, _ in found[fewer.name]]
    expected = {item.id: item.score for item in recommender.rank(HISTORY, keys)}
    assert {record["key"]: score for record, score in found["depth-1"]} == pytest.approx(expected, abs=1e-5)
    backbone.set(replace(backbone.config, depth=None))
    expected = {item.id: item.score for item in recommender.rank(HISTORY, keys)}
    assert {record["key"]: score for record, score in found[fewer.name]} == pytest.approx(expected, abs=1e-5)
    assert graph.by_name["rank"].bucket({"rung": shallow}) != graph.by_name["rank"].bucket({"rung": whole})


def test_the_ladder_of_a_graph_that_must_not_degrade_is_one_rung(recommender):
    assert recommender_graph(recommender, GraphConfig(degrade=False)).ladder.rungs == (Rung("full"),)
