"""Odd logs, from the file to a recommendation: each trains and answers, or says in one message why it cannot."""

import pytest

from m6rec.api import load
from m6rec.assemble import open_experiment, train_run
from m6rec.comparison import compare_run
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.table import CsvSource
from m6rec.errors import M6RecError
from m6rec.recipe import read_recipe
from tests.little_shop import SMALL

HEAD = "user,item,timestamp,rating,title"
TWO = [f"u{user},i{item},{100 * item},{1 + item},soft {item}" for user in range(2) for item in range(5)]
UNTESTED = ["training.evaluate_every=null", "training.select_on=null", "training.patience=null"]
LOGS = {
    "one user": [f"u,i{item},{item},5,red {item}" for item in range(6)],
    "one item": [f"u{user},i,{time},4,blue lamp" for user in range(4) for time in range(4)],
    "one event each, and one user with three": [*(f"u{user},i{user},1,4,chair" for user in range(5)), *TWO[:3]],
    "no titles at all": [f"{line.rpartition(',')[0]}," for line in TWO],
    "repeated, unsorted, of the same second": [*TWO[::-1], *TWO, *(line.replace("00,", "05,") for line in TWO)],
    "no times": [line.replace(line.split(",")[2], "", 1) if line.split(",")[2] != "0" else line for line in TWO[1:5]],
    "strange ratings": [line.replace(",5,", ",-3,").replace(",2,", ",nan,") for line in TWO],
    "strange titles": [f'{line.rpartition(",")[0]},"{{{{ 7 }}}} [EOS] [/b] 🙂 مرحبا {"x" * 300}"' for line in TWO],
}


@pytest.fixture
def dataset(tmp_path):
    def made(lines, **settings):
        (tmp_path / "log.csv").write_text("\n".join([HEAD, *lines]) + "\n")
        prepare(
            CsvSource(CsvSource.Config(path=str(tmp_path / "log.csv"))), tmp_path / "data", PrepareConfig(**settings)
        )
        return tmp_path / "data"

    return made


@pytest.mark.parametrize("name", LOGS)
def test_retrieval_trains_and_answers(dataset, tiny_folder, tmp_path, name):
    data = dataset(LOGS[name])
    words = [f"data={data}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", *SMALL["retrieval"]]
    train_run(read_recipe("retrieval", [*words, "training.num_epochs=1"]))
    experiment = open_experiment(tmp_path / "run")
    assert 0 <= compare_run(experiment, "test", ["popularity"]).report.rows[0].means()["ndcg@10"] <= 1
    recommender = load(tmp_path / "run")
    for history in ("", "something new", [experiment.dataset.items["key"][0]]):
        found = recommender.recommend(history, k=3, exclude_history=False)
        assert len(found) == min(3, len(recommender.catalog))


@pytest.mark.parametrize(
    "name", ["one user", "one event each, and one user with three", "no titles at all", "strange titles"]
)
def test_ranking_trains_and_answers(dataset, tiny_folder, tmp_path, name):
    data = dataset(LOGS[name])
    words = [f"data={data}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", *SMALL["ranking"]]
    train_run(read_recipe("ranking", [*words, "training.max_steps=1"]))
    ranker = load(tmp_path / "run")
    (found,) = ranker.rank("something", ["something else"])
    assert 0 < found.score < 1


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (["u0,i0,1,5,red", "u1,i1,1,5,blue", "u2,i0,2,5,red"], "training examples"),
        (TWO[:2], "held|training examples|validation"),
    ],
    ids=["one event each", "two events"],
)
def test_too_little_to_learn_from_is_one_message(dataset, tiny_folder, tmp_path, lines, part):
    words = [f"data={dataset(lines)}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", *SMALL["retrieval"]]
    with pytest.raises(M6RecError, match="validation"):
        train_run(read_recipe("retrieval", words))
    if part == "training examples":
        with pytest.raises(M6RecError, match=part):
            train_run(read_recipe("retrieval", [*words, *UNTESTED]))
