"""``m6rec hub``: the two commands as a shell would run them."""

import sys

import pytest

from m6rec import cli
from tests.hub_server import READ


@pytest.fixture
def shell(monkeypatch, capfd):
    """Run a command in this process; return its exit status, what it printed and what it said on stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["m6rec", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capfd.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


def test_push_pull_and_ask(hub, shell, ranking_run, tmp_path):
    code, out, _ = shell("hub", "push", ranking_run, "me/ranker", "--base", "me/tiny", "--private")
    assert (code, out.strip()) == (0, f"{hub.url}/me/ranker/commit/{hub.models['me/ranker'].commits[-1][0]}")
    assert hub.models["me/ranker"].private
    code, out, _ = shell("hub", "pull", "me/ranker", "--out", tmp_path / "theirs")
    assert (code, out.strip()) == (0, str(tmp_path / "theirs"))
    answers = [
        shell("rank", run, "--history", "red shirt", "--candidates", "blue lamp; green chair")
        for run in (ranking_run, "me/ranker", tmp_path / "theirs")
    ]
    assert answers[0][0] == 0
    assert answers[0][1] == answers[1][1] == answers[2][1]


def test_a_look_at_what_would_be_pushed(hub, shell, retrieval_run, tmp_path):
    words = ["--base", "me/tiny", "--no-catalogue", "--to", tmp_path / "look"]
    code, out, _ = shell("hub", "push", retrieval_run, "me/shop", *words)
    assert code == 0
    assert "README.md" in out
    assert "checkpoints" not in out
    assert not hub.requests


def test_mistakes_are_one_message(hub, shell, ranking_run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READ)
    for words, part in (
        (["push", ranking_run, "me/ranker"], "--base OWNER/NAME"),
        (["push", ranking_run, "me/ranker", "--base", "me/tiny"], "hf auth login"),
        (["pull", "me/nothing"], "no model me/nothing"),
    ):
        code, out, err = shell("hub", *words)
        assert (code, out) == (2, "")
        assert err.count("error:") == 1
        assert part in err


def test_evaluation_takes_a_run_from_the_hub(hub, shell, ranking_run, shop):
    shell("hub", "push", ranking_run, "me/ranker", "--base", "me/tiny")
    code, out, err = shell("evaluate", "me/ranker", "--data", shop)
    assert code == 0, err
    assert "auc" in out
