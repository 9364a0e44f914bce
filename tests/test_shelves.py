"""The tables are text that no import checker can see: every entry resolves, explains itself and keeps its protocol."""

import dataclasses
import inspect

import pytest

from m6rec import cli
from m6rec.backbones.base import Backbone
from m6rec.baselines.base import Baseline, PairBaseline
from m6rec.config import field_help
from m6rec.data.sources.base import Source
from m6rec.indexes.base import Index
from m6rec.serving.stages.base import PlainStage
from m6rec.tasks.base import Task
from m6rec.tuners.base import Tuner

ENTRIES = [(shelf, name) for shelf in cli.SHELVES for name in cli.open_shelf(shelf)]
WITH_CONFIG = [entry for entry in ENTRIES if entry[0] != "backbones"]
GIVEN = {"dim": 4}


def plugin(shelf, name):
    return cli.open_shelf(shelf).load(name)


def config_of(kind):
    """Return a config with its defaults; a path has none."""
    fields = dataclasses.fields(kind.Config)
    required = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
    return kind.Config(**dict.fromkeys(required, "somewhere"))


@pytest.mark.parametrize(("shelf", "name"), ENTRIES)
def test_it_resolves_and_explains_itself(shelf, name):
    kind = plugin(shelf, name)
    assert inspect.isclass(kind)
    line, _ = cli.open_shelf(shelf).describe(name)
    assert line.endswith(".")
    assert 15 < len(line) < 140
    assert kind.__doc__ is not None  # its own, not one that it inherits


@pytest.mark.parametrize(("shelf", "name"), WITH_CONFIG)
def test_its_settings_are_frozen_and_explained(shelf, name):
    config = plugin(shelf, name).Config
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    helped = field_help(config)
    assert {field.name for field in dataclasses.fields(config)} == set(helped)
    assert all(text.strip() for text in helped.values())


@pytest.mark.parametrize("name", list(cli.open_shelf("baselines")))
def test_baselines(name):
    pytest.importorskip("implicit") if name == "als" else None
    baseline = plugin("baselines", name)()
    assert isinstance(baseline, Baseline | PairBaseline)
    assert baseline.name == name


@pytest.mark.parametrize("name", list(cli.open_shelf("tuners")))
def test_tuners(name):
    kind = plugin("tuners", name)
    assert isinstance(kind(kind.Config()), Tuner)


@pytest.mark.parametrize("name", list(cli.open_shelf("sources")))
def test_sources(name):
    kind = plugin("sources", name)
    assert next(iter(dataclasses.fields(kind.Config))).name == "path"
    source = kind(config_of(kind))
    assert isinstance(source, Source)
    assert source.licence
    assert source.domain
    assert isinstance(source.name, str)


@pytest.mark.parametrize("name", list(cli.open_shelf("indexes")))
def test_indexes(name):
    pytest.importorskip("faiss") if name == "faiss" else None
    assert isinstance(plugin("indexes", name)(**GIVEN), Index)


@pytest.mark.parametrize("name", list(cli.open_shelf("teachers")))
def test_teachers(name):
    kind = plugin("teachers", name)
    assert all(callable(getattr(kind, verb)) for verb in ("open", "label", "close"))


@pytest.mark.parametrize("name", list(cli.open_shelf("tasks")))
def test_tasks(name):
    kind = plugin("tasks", name)
    assert issubclass(kind, Task)
    assert not inspect.isabstract(kind)
    assert kind.name == name


@pytest.mark.parametrize("name", list(cli.open_shelf("backbones")))
def test_backbones(name):
    kind = plugin("backbones", name)
    assert issubclass(kind, Backbone)
    assert not inspect.isabstract(kind)
    assert kind.family == name


@pytest.mark.parametrize("name", list(cli.open_shelf("stages")))
def test_stages(name):
    kind = plugin("stages", name)
    assert issubclass(kind, PlainStage)
    assert kind.name == name


@pytest.mark.parametrize("name", list(cli.open_shelf("engines")))
def test_engines(name):
    kind = plugin("engines", name)
    assert callable(kind.run)
    assert kind.name == name


def test_every_shelf_of_the_package_is_on_the_command_line():
    """A package whose ``__init__`` holds a Registry is a shelf."""
    import importlib
    import pkgutil

    import m6rec
    from m6rec.registry import Registry

    found = set()
    for module in pkgutil.walk_packages(m6rec.__path__, "m6rec."):
        if module.ispkg:
            package = importlib.import_module(module.name)
            found |= {id(value) for value in vars(package).values() if isinstance(value, Registry)}
    assert found == {id(cli.open_shelf(name)) for name in cli.SHELVES}
