import sys

import psutil
import pytest

from m6rec.training import launch

ASKED = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def started(monkeypatch):
    """Pretend to be the script of ``accelerate launch`` and return what it would turn into."""

    def start(environment, *words):
        commands = []
        for name in (*ASKED, "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(psutil.Process, "cmdline", lambda process: ["python", "-m", "accelerate", *words])
        monkeypatch.setattr("os.execv", lambda path, command: commands.append(command))
        monkeypatch.setattr(sys, "argv", ["train.py", "recipe", "lr=1"])
        launch.start_missing_processes()
        return commands

    return start


@pytest.mark.parametrize(
    "words", [("--num_processes", "2"), ("--cpu", "--num-processes=2"), ("--num_processes=2", "-q")]
)
def test_missing_processes_are_started(started, words):
    (command,) = started(ASKED, *words)
    assert command[-5:] == ["--nproc-per-node", "2", "train.py", "recipe", "lr=1"]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ("--num_processes", "2")),
        ({"MASTER_ADDR": "127.0.0.1"}, ("--num_processes", "2")),
        (ASKED | {"WORLD_SIZE": "2"}, ("--num_processes", "2")),
        (ASKED, ("--num_processes", "1")),
        (ASKED, ("--num_processes",)),
        (ASKED, ()),
    ],
)
def test_nothing_is_started_anywhere_else(started, environment, words):
    assert started(environment, *words) == []
