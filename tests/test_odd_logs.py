"""Odd logs, from the file to a recommendation: each trains and answers, or says in one message why it cannot."""

import pytest

from m6rec.api import load
from m6rec.assemble import open_experiment, train_run
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.table import CsvSource
from m6rec.errors import DataError
from m6rec.recipe import read_recipe
from m6rec.workflows.comparison import compare_run
from tests.little_shop import SMALL

HEAD = "user,item,timestamp,rating,title"
TWO = [f"u{user},i{item},{100 * item},{1 + item},soft {item}" for user in range(2) for item in range(5)]
LOGS = {
    "one user": [f"u,i{item},{item},5,red {item}" for item in range(6)],
    "one item": [f"u{user},i,{time},4,blue lamp" for user in range(4) for time in range(4)],
    "one event each, and one user with three": [*(f"u{user},i{user},1,4,chair" for user in range(5)), *TWO[:3]],
    "no titles at all": [f"{line.rpartition(',')[0]}," for line in TWO],
    "repeated, unsorted, of the same second": [*TWO[::-1], *TWO, *(line.replace("00,", "05,") for line in TWO)],
    "no times": [f"u{user},i{item},,{1 + item},soft {item}" for user in range(2) for item in range(5)],
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


@pytest.mark.parametrize("name", ["one user", "one event each, and one user with three", "strange titles"])
def test_ranking_trains_and_answers(dataset, tiny_folder, tmp_path, name):
    data = dataset(LOGS[name])
    words = [f"data={data}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", *SMALL["ranking"]]
    train_run(read_recipe("ranking", [*words, "training.max_steps=1"]))
    ranker = load(tmp_path / "run")
    (found,) = ranker.rank("something", ["something else"])
    assert 0 < found.score < 1


def test_too_little_to_learn_from_says_so(dataset, tiny_folder, tmp_path):
    data = dataset(["u0,i0,1,5,red", "u1,i1,1,5,blue", "u2,i0,2,5,red"])
    words = [f"data={data}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", *SMALL["retrieval"]]
    with pytest.raises(DataError, match="no training examples"):
        train_run(read_recipe("retrieval", words))


def test_a_log_with_nothing_held_out_keeps_the_last_weights_and_says_so(dataset, tiny_folder, tmp_path, caplog):
    data = dataset(TWO, split="temporal", split_shares=(0.8, 0.0, 0.2))
    words = [f"data={data}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", *SMALL["retrieval"]]
    _, result = train_run(read_recipe("retrieval", [*words, "training.num_epochs=2"]))
    assert (result.epochs, result.best_step) == (2, None)
    assert "nothing out for validation" in caplog.text
    assert load(tmp_path / "run").recommend("soft 1", k=1)
