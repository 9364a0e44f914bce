"""Talking to a run: turns as anybody writes them, replies with ids, and the terminal with lines from a pipe."""

import json

import pytest
from typer.testing import CliRunner

from m6rec import cli
from m6rec.api import load
from m6rec.api.talking import read_turns
from m6rec.assemble import train_run
from m6rec.errors import ConfigError, DataError, RunError
from m6rec.recipe import read_recipe
from tests.little_talks import FILMS, prepare_talks

TITLES = {key: title for key, title, _, _ in FILMS}
WORDS = ["training.max_steps=2", "training.batch_size=4", "task.ask_below=0.0", "task.decoding.max_new_tokens=24"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("talks")
    prepare_talks(folder / "data")
    words = [f"data={folder / 'data'}", f"out={folder / 'run'}", f"backbone.name={tiny_folder}", *WORDS]
    train_run(read_recipe("conversation", words))
    return folder / "run"


@pytest.fixture(scope="module")
def recommender(run):
    return load(run)


def test_a_reply_names_real_items_with_their_ids(recommender):
    reply = recommender.chat(["A comedy, please."])
    assert reply.items
    for item in reply.items:
        assert TITLES[item.id] == item.title
        assert item.title in reply.text
        assert 0 < item.score < 1


def test_a_dialogue_goes_on_turn_by_turn(recommender):
    """The caller holds the state; what was named is not named again."""
    first = recommender.chat(["A comedy, please."])
    turns = [{"speaker": "USER", "text": "A comedy, please."}, first.turn, {"speaker": "USER", "text": "Another one?"}]
    second = recommender.chat(turns)
    assert not {item.id for item in first.items} & {item.id for item in second.items}
    assert recommender.chat(["A comedy, please."]) == first


def test_an_empty_dialogue_is_begun_by_a_question(recommender):
    reply = recommender.chat([])
    assert reply.text
    assert not reply.items


def test_streamed_equals_whole(recommender):
    *pieces, last = recommender.chat_stream(["A crime film like It (2017)"])
    assert last == recommender.chat(["A crime film like It (2017)"])
    assert "".join(pieces) == last.text


def test_suggestions_are_likeliest_first_and_new(recommender):
    found = recommender.suggest(["I liked It (2017) and Soft Shoes."], k=20)
    assert len(found) == len(FILMS) - 2
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    assert not {"f2", "f5"} & {item.id for item in found}


def test_turns_as_anybody_writes_them(recommender):
    task = recommender.run.task
    turns = read_turns(task, ["Hi", {"text": "Have you seen It (2017)?", "speaker": "system"}, "Yes, and Red Lamp."])
    assert [turn.speaker for turn in turns] == ["USER", "SYSTEM", "USER"]
    assert [[task.catalogue.keys[item] for item in turn.items] for turn in turns] == [[], ["f2"], ["f0"]]
    given = read_turns(task, [{"text": "that one", "items": ["f7"]}])
    assert [task.catalogue.keys[item] for item in given[0].items] == ["f7"]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("hello", "expected a list of turns"),
        ([3], "turn 1: got 3"),
        ([{"speaker": "ADMIN", "text": "x"}], "expected USER or SYSTEM"),
        ([{"text": "x", "items": ["nothing"]}], "which the catalogue lacks"),
    ],
)
def test_turns_that_are_none(recommender, turns, message):
    with pytest.raises(DataError, match=message):
        recommender.chat(turns)


def test_settings_and_runs_that_do_not_fit(recommender, retrieval_run):
    with pytest.raises(ConfigError, match="max_new"):
        recommender.chat(["hi"], max_new=3)
    with pytest.raises(RunError, match="needs a conversation run"):
        load(retrieval_run).chat(["hi"])


def test_the_terminal_reads_lines_from_a_pipe(run, tmp_path):
    lines = "A comedy, please.\n\n/reset\nA drama like Blue Chair (1994)\nAnother?\n/quit\nnot read\n"
    answer = tmp_path / "talk.json"
    result = CliRunner().invoke(cli.app, ["chat", str(run), "--json", str(answer)], input=lines)
    assert result.exit_code == 0, result.output
    turns = json.loads(answer.read_text())["turns"]
    assert [turn["speaker"] for turn in turns] == ["USER", "SYSTEM"] * 2
    assert turns[0]["text"] == "A drama like Blue Chair (1994)"
    assert "(a new dialogue)" in result.output
    assert "not read" not in result.output
    for turn in turns[1::2]:
        assert turn["items"]
        assert all(TITLES[item] in result.output for item in turn["items"])
