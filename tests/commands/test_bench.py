"""``m6rec bench`` and ``scripts/bench_scoring.py``: other doors to ``scripts/bench.py``."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m6rec.cli import app
from m6rec.commands import bench
from m6rec.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def asked(monkeypatch):
    """Return what a call of the command runs, and pretend that it ends with 3."""
    calls = []

    def run(command, check):
        calls.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(bench.subprocess, "run", run)
    return calls


def test_all_words_go_to_the_script_and_its_status_comes_back(asked):
    words = ["frontier", "--data", "here", "--json", "f.json", "--quick", "--help"]
    assert CliRunner().invoke(app, ["bench", *words]).exit_code == 3
    assert asked == [[sys.executable, str(ROOT / "scripts" / "bench.py"), *words]]


def test_without_the_scripts_it_says_where_they_are(monkeypatch, tmp_path, asked):
    monkeypatch.setattr(bench, "SCRIPT", tmp_path / "bench.py")
    found = CliRunner().invoke(app, ["bench", "frontier"])
    assert isinstance(found.exception, ConfigError)
    assert "checkout" in str(found.exception)
    assert not asked


@pytest.mark.parametrize(
    ("words", "name"),
    [(["-m", "m6rec", "bench", "wrold"], "world"), ([ROOT / "scripts" / "bench_scoring.py", "--sedes"], "--sedes")],
)
def test_the_script_answers_itself(words, name):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert name in done.stderr
    assert "Traceback" not in done.stderr
