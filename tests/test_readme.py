"""The README's own commands, run on a little shop; only the backbone is made small, and the Hub is a stand-in."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from m6rec import cli
from tests.little_shop import SMALL, shop_events, write_shop

README = Path(__file__).parent.parent / "README.md"


def commands():
    """Return the README's m6rec command lines, without their comments."""
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.split("   #")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("m6rec ")]


def test_the_readme_shows_the_main_job():
    assert {words[1] for words in commands()} >= {
        "data",
        "train",
        "recommend",
        "evaluate",
        "show-prompt",
        "list",
        "hub",
    }


def test_the_readmes_commands_run_in_their_order(tmp_path, monkeypatch, capfd, tiny_folder, hub):
    write_shop(tmp_path, shop_events(40))
    monkeypatch.chdir(tmp_path)
    for words in commands():
        if words[1] == "train":
            words = [*words, f"backbone.name={tiny_folder}", *SMALL[words[2]]]
        if words[1] == "show-prompt":
            words = [*words, "--backbone", str(tiny_folder)]
        if words[1] == "evaluate":
            words = [word.replace(",sasrec", "") for word in words]
        if words[1:3] == ["hub", "push"]:
            words = [*words, "--base", "me/tiny"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, (words, capfd.readouterr().err)
    assert (tmp_path / "top10.json").is_file()
    assert (tmp_path / "report.png").is_file()
    assert (tmp_path / "runs" / "theirs" / "run.json").is_file()
