import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from m6rec.config import assign, field_help, parse, plain
from m6rec.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    """Nested settings."""

    dim: int = 8
    """Width.

    A second paragraph.
    """
    rate: float = 0.1
    """Rate."""

    def __post_init__(self):
        if self.dim < 1:
            raise ConfigError(f"got dim {self.dim}, expected 1 or more")


@dataclass(frozen=True)
class Outer:
    name: str
    """Name."""
    kind: Literal["a", "b", 1] = "a"
    """Kind."""
    inner: Inner = Inner()
    maybe: Inner | None = None
    """Maybe."""
    every: int | Literal["epoch"] | None = None
    cutoffs: tuple[int, ...] = (5, 10)
    pair: tuple[float, str] = (1.0, "x")
    many: Sequence[Inner] = ()
    names: list[str] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)
    table: dict[str, Inner] = field(default_factory=dict)
    switch: bool = False
    anything: Any = None
    derived: int = field(default=0, init=False)
    """Not set by anybody."""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kind": 1}, {"kind": 1}),
        ({"inner": {"dim": 3}}, {"inner": Inner(dim=3)}),
        ({"inner": Inner(dim=3)}, {"inner": Inner(dim=3)}),
        ({"maybe": None}, {"maybe": None}),
        ({"maybe": {"rate": 1}}, {"maybe": Inner(rate=1.0)}),
        ({"every": 3}, {"every": 3}),
        ({"every": "epoch"}, {"every": "epoch"}),
        ({"cutoffs": []}, {"cutoffs": ()}),
        ({"cutoffs": [1, 2, 3]}, {"cutoffs": (1, 2, 3)}),
        ({"pair": [2, "y"]}, {"pair": (2.0, "y")}),
        ({"many": [{"dim": 2}, {}]}, {"many": (Inner(dim=2), Inner())}),
        ({"names": ("u", "v")}, {"names": ["u", "v"]}),
        ({"counts": {"x": 1}}, {"counts": {"x": 1}}),
        ({"table": {"x": {"dim": 2}}}, {"table": {"x": Inner(dim=2)}}),
        ({"switch": True}, {"switch": True}),
        ({"anything": None}, {"anything": None}),
        ({"anything": [1, "x"]}, {"anything": [1, "x"]}),
    ],
)
def test_what_fits(values, expected):
    assert parse(Outer, {"name": "n", **values}) == dataclasses.replace(Outer("n"), **expected)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": 3}, "name: got 3, expected str"),
        ({"name": None}, "name: got None, expected str"),
        ({"kind": "c"}, "kind: got 'c', expected one of 'a', 'b', 1"),
        ({"kind": True}, "kind: got True, expected one of"),  # although True == 1
        ({"inner": 3}, "inner: got 3, expected a mapping"),
        ({"inner": {"dmi": 3}}, "unknown setting 'inner.dmi'; did you mean dim?"),
        ({"inner": {"dim": True}}, "inner.dim: got True, expected int"),
        ({"inner": {"dim": 1.5}}, "inner.dim: got 1.5, expected int"),
        ({"inner": {"rate": "fast"}}, "inner.rate: got 'fast', expected float"),
        ({"inner": {"rate": True}}, "inner.rate: got True, expected float"),
        ({"inner": {"dim": 0}}, "inner: got dim 0, expected 1 or more"),
        ({"maybe": 3}, "maybe: got 3, expected a mapping or null"),
        ({"maybe": {"dmi": 3}}, "unknown setting 'maybe.dmi'"),
        ({"maybe": {"dim": 0}}, "maybe: got dim 0, expected 1 or more"),
        ({"every": "week"}, "every: got 'week', expected int, 'epoch' or null"),
        ({"cutoffs": 5}, "cutoffs: got 5, expected a list of int"),
        ({"cutoffs": "5"}, "cutoffs: got '5', expected a list of int"),
        ({"cutoffs": [1, "x"]}, "cutoffs[1]: got 'x', expected int"),
        ({"pair": [1]}, "pair: got [1], expected a list [float, str]"),
        ({"pair": [1, 2]}, "pair[1]: got 2, expected str"),
        ({"many": [{}, {"dmi": 1}]}, "unknown setting 'many[1].dmi'"),
        ({"counts": {"x": "y"}}, "counts.x: got 'y', expected int"),
        ({"counts": [1]}, "counts: got [1], expected a mapping"),
        ({"switch": 1}, "switch: got 1, expected bool"),
        ({"derived": 1}, "unknown setting 'derived'"),
        ({1: 2}, "unknown setting '1'"),
    ],
)
def test_what_does_not_fit_is_told(values, told):
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"name": "n", **values})
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"kin": "a", "every": "week", "inner": {"dmi": 1, "rate": "x"}, "maybe": {"dim": 0}}, where="task")
    assert sorted(line.split(":")[0].split(";")[0] for line in str(caught.value).splitlines()) == [
        "missing setting 'task.name'",
        "task.every",
        "task.inner.rate",
        "task.maybe",
        "unknown setting 'task.inner.dmi'",
        "unknown setting 'task.kin'",
    ]


def test_a_setting_given_wrongly_is_not_also_missing():
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"name": 3})
    assert "missing" not in str(caught.value)


@pytest.mark.parametrize("values", [None, 3, ["name"], "name"])
def test_settings_must_be_a_mapping(values):
    with pytest.raises(ConfigError, match=r"Outer: got .*, expected a mapping of settings"):
        parse(Outer, values)


@pytest.mark.parametrize(("value", "dim"), [(3, 3), (3.0, 3), (1e4, 10_000)])
def test_whole_numbers(value, dim):
    built = parse(Inner, {"dim": value}).dim
    assert built == dim
    assert type(built) is int


@pytest.mark.parametrize("value", [1e-3, "1e-3", "0.001", "0.1%"])
def test_numbers_that_yaml_takes_for_text(value):
    assert parse(Inner, {"rate": value}).rate == 1e-3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e-3", 1e-3),
        ("-2.5E+4", -25_000.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("[5, 10]", [5, 10]),
        ("{dim: 3}", {"dim": 3}),
        ("'3'", "3"),
        ('"true"', "true"),
        # What YAML 1.1 would turn into something else.
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("007", "007"),
        ("nan", "nan"),
        ("infinity", "infinity"),
        ("title #1", "title #1"),
        ("a: b", "a: b"),
        ("*.csv", "*.csv"),
        ("@home", "@home"),
        ("x=y", "x=y"),
        ("  spaced  ", "spaced"),
        ("café", "café"),
    ],
)
def test_the_value_of_a_word(text, value):
    result = assign({}, [f"key={text}"])["key"]
    assert result == value
    assert type(result) is type(value)


def test_words_write_deep_and_leave_the_tree_alone():
    tree = {"a": {"b": {"c": 1, "d": 2}}, "empty": None}
    result = assign(tree, ["a.b.c=3", "a.b.e.f=4", "empty.x=5", "new=6", "new=7"])
    assert result == {"a": {"b": {"c": 3, "d": 2, "e": {"f": 4}}}, "empty": {"x": 5}, "new": 7}
    assert tree == {"a": {"b": {"c": 1, "d": 2}}, "empty": None}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("a.=3", "expected key=value"),
        ("seed.x=3", "writes below 'seed', which holds 1"),
        ("ks=[1, 2", "close its brackets"),
    ],
)
def test_words_that_say_nothing(word, told):
    with pytest.raises(ConfigError, match=told.replace("[", r"\[")):
        assign({"seed": 1}, [word])


@dataclass(frozen=True)
class Child(Inner):
    rate: float = 0.5
    """Another rate."""
    more: int = 1
    """More."""
    silent: int = 2


def test_field_help_reads_what_stands_under_a_field():
    assert field_help(Inner) == {"dim": "Width.\n\nA second paragraph.", "rate": "Rate."}
    assert field_help(Outer).keys() == {"name", "kind", "maybe", "derived"}


def test_field_help_is_inherited():
    assert field_help(Child) == {**field_help(Inner), "rate": "Another rate.", "more": "More."}


def test_plain_is_what_parse_takes():
    config = Outer("n", maybe=Inner(dim=2), cutoffs=(1,), many=(Inner(),), table={"x": Inner()})
    values = plain(config)
    assert values["maybe"] == {"dim": 2, "rate": 0.1}
    assert values["cutoffs"] == [1]
    values.pop("derived")
    assert parse(Outer, values) == config
    assert plain({1: (2, {"x": None})}) == {"1": [2, {"x": None}]}
