from dataclasses import dataclass
from typing import Literal

import pytest

from m6rec.commands.flags import flag_help, parse_flags
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources import SOURCES
from m6rec.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """A source."""

    path: str
    """Where the log is."""
    user: str | None = None
    """Column of
    the user."""
    seed: int = 0
    """Seed of the source."""


@dataclass(frozen=True)
class Prepare:
    """A preparation."""

    split: Literal["one", "none"] = "one"
    """What is held out."""
    shares: tuple[float, float] = (0.9, 0.1)
    """Shares."""
    k_core: int = 0
    """Events a user and item must have."""
    min_value: float | None = None
    """Least value."""
    strict: bool = False
    """Whether."""
    seed: int = 0
    """Seed of the preparation."""


CONFIGS, ALIASES = {"source": Source, "prepare": Prepare}, {"from": "path"}


def parsed(text):
    chosen = parse_flags(text.split(), CONFIGS, ALIASES)
    return chosen["source"], chosen["prepare"]


def test_words_fill_the_config_that_has_the_field():
    source, prepare = parsed("--from log.csv --user who --k-core=5 --min-value 1e-1 --split none --strict true")
    assert source == Source(path="log.csv", user="who")
    assert prepare == Prepare(k_core=5, min_value=0.1, split="none", strict=True)


@pytest.mark.parametrize("text", ["[0.8,0.2]", "0.8,0.2"])
def test_a_list_is_read_with_or_without_brackets(text):
    assert parsed(f"--from log.csv --shares {text}")[1].shares == (0.8, 0.2)


def test_a_word_stays_a_word_where_a_word_is_expected():
    source, _ = parse_flags(["--from", "no", "--user", "2024-01-01"], CONFIGS, ALIASES).values()
    assert (source.path, source.user) == ("no", "2024-01-01")
    empty, _ = parse_flags(["--from", "null", "--user="], CONFIGS, ALIASES).values()
    assert (empty.path, empty.user) == ("null", "")


def test_a_flag_that_both_have_fills_both():
    source, prepare = parsed("--from log.csv --seed 7")
    assert source.seed == prepare.seed == 7
    assert sum(row[0] == "--seed" for row in flag_help(CONFIGS, ALIASES)) == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("--from a --usr b --kcore 3", ["'--usr'", "mean --user", "'--kcore'", "mean --k-core?"]),
        ("--frm a", ["'--frm'", "mean --from?"]),
        ("log.csv", ["'log.csv'", "a flag"]),
        ("--from", ["--from", "no value"]),
        ("--user who", ["missing", "--from"]),
        ("--from a --k-core many", ["k_core", "'many'", "int"]),
        ("--from a --shares [0.8", ["0.8"]),
        ("--from a --split two", ["'one'", "'none'"]),
    ],
)
def test_mistakes_say_what_to_do(text, parts):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    for part in parts:
        assert part in str(caught.value)


def test_mistakes_of_both_configs_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parsed("--from a --seed x --k-core y")
    assert "seed" in str(caught.value)
    assert "k_core" in str(caught.value)


def test_help_names_flags_defaults_and_docstrings():
    rows = {flag: (default, text) for flag, default, text in flag_help(CONFIGS, ALIASES)}
    assert rows["--from"] == ("", "Where the log is.")
    assert rows["--user"] == ("", "Column of the user.")
    assert rows["--shares"][0] == "(0.9, 0.1)"
    assert rows["--k-core"] == ("0", "Events a user and item must have.")


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_source_has_help_for_each_of_its_flags(name):
    configs = {"source": SOURCES.load(name).Config, "prepare": PrepareConfig}
    rows = flag_help(configs, ALIASES)
    assert rows[0][0] == "--from"
    assert all(text for _, _, text in rows)
    assert len({flag for flag, _, _ in rows}) == len(rows)
