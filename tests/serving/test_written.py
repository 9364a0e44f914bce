"""Reasons, creations, talk and free text through the graph: what comes is what the recommender itself gives."""

import asyncio

import pytest

from m6rec.api import load
from m6rec.assemble import train_run
from m6rec.errors import DataError
from m6rec.recipe import read_recipe
from m6rec.serving.executors.local import LocalExecutor
from m6rec.serving.graphs import recommender_graph
from tests.little_shop import SMALL
from tests.little_talks import prepare_talks
from tests.written_shop import prepare_written

SLOW = 60_000
WRITING = ("task.max_events=3", "task.decoding.max_new_tokens=6", "training.max_steps=2")
TALKING = ("training.max_steps=2", "training.batch_size=4", "task.ask_below=0.0", "task.decoding.max_new_tokens=24")
HISTORY = ["g03", "g04"]


@pytest.fixture(scope="module")
def recommender(tiny_folder, tmp_path_factory):
    """Return a recommender that retrieves, explains, makes titles, and talks."""
    folder = tmp_path_factory.mktemp("writers")
    data, talks = prepare_written(folder), folder / "talks"
    prepare_talks(talks)
    plans = {
        "retrieval": (data, (*SMALL["retrieval"], "training.num_epochs=1")),
        "explanation": (data, WRITING),
        "title": (data, WRITING),
        "conversation": (talks, TALKING),
    }
    for name, (source, words) in plans.items():
        given = [f"data={source}", f"out={folder / name}", f"backbone.name={tiny_folder}"]
        train_run(read_recipe(name, [*given, *words]))
    return load(*(folder / name for name in plans))


def served(recommender, body):
    async def whole():
        executor = LocalExecutor(recommender_graph(recommender))
        await executor.start()
        try:
            return await body(executor)
        finally:
            await executor.drain(5)

    return asyncio.run(asyncio.wait_for(whole(), 120))


def asked(recommender, kind, /, **request):
    return served(recommender, lambda executor: executor.submit(request, kind=kind, deadline_ms=SLOW))


def test_the_graph_can_what_its_runs_can(recommender):
    kinds = recommender_graph(recommender).kinds
    assert kinds == {"recommend", "retrieve", "explain", "create", "chat", "score", "generate"}


def test_a_reason_alone_and_with_a_list(recommender):
    alone = asked(recommender, "explain", history=HISTORY, item="g05")
    assert alone["text"] == recommender.explain(HISTORY, "g05").text
    assert alone["item"]["id"] == "g05"
    listed = asked(recommender, "recommend", history=HISTORY, k=3, explain=True)
    assert [item["id"] for item in listed["items"]] == [item.id for item in recommender.recommend(HISTORY, 3)]
    best = recommender.explain(HISTORY, listed["items"][0]["id"])
    assert listed["items"][0]["explanation"]["text"] == best.text
    assert "explanation" not in listed["items"][1]


def test_a_creation(recommender):
    found = asked(recommender, "create", history=HISTORY, kind="title")
    assert [one["text"] for one in found["created"]] == [str(one) for one in recommender.create(HISTORY, "title")]


def test_scores(recommender):
    texts = ["bought a red shirt", "bought a blue lamp"]
    found = asked(recommender, "score", text=texts, history=HISTORY)
    assert found["scores"] == pytest.approx(recommender.score(texts, HISTORY), abs=1e-4)


@pytest.mark.parametrize("text", ["now chooses", "a [MASK] lamp named [MASK]"])
def test_free_text_in_one(recommender, text):
    found = asked(recommender, "generate", text=text)
    assert found["texts"][0]["text"] == recommender.generate(text).text


def streamed(recommender, kind, **request):
    async def body(executor):
        return [piece async for piece in executor.stream(request, kind=kind, deadline_ms=SLOW)]

    *pieces, answer = served(recommender, body)
    return pieces, answer


def test_free_text_as_it_is_written(recommender):
    pieces, answer = streamed(recommender, "generate", text="now chooses")
    assert pieces == list(recommender.stream("now chooses"))
    assert answer["texts"][0]["text"] == recommender.generate("now chooses").text


def test_talk_as_it_is_said(recommender):
    turns = ["A comedy, please."]
    pieces, answer = streamed(recommender, "chat", turns=turns)
    reply = recommender.chat(turns)
    assert answer["text"] == reply.text
    assert "".join(pieces).strip() == reply.text
    assert [item["id"] for item in answer["items"]] == [item.id for item in reply.items]


def test_a_dialogue_that_cannot_be_read_is_told(recommender):
    with pytest.raises(DataError, match="turn 1"):
        asked(recommender, "chat", turns=[3])
