import functools
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from m6rec import registry as registry_module
from m6rec.errors import ConfigError, UnknownNameError
from m6rec.registry import Registry


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Put modules on the path and forget them afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    names = set()

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        names.add(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_a_shelf_imports_only_what_is_asked_for(plugins):
    plugins("plugin_one", "class One: pass")
    plugins("plugin_two", "raise RuntimeError('never imported')")
    shelf = Registry("thing", {"one": "plugin_one:One", "two": "plugin_two:Two"})
    assert list(shelf) == ["one", "two"]
    assert len(shelf) == 2
    assert dict(shelf) == {"one": "plugin_one:One", "two": "plugin_two:Two"}
    assert shelf.load("one").__name__ == "One"
    assert "plugin_two" not in sys.modules


def test_an_unknown_name_gets_the_nearest():
    shelf = Registry("tuner", {"lora": "a:B", "prompt": "a:C"})
    for look_up in (shelf.load, shelf.__getitem__, shelf.describe):
        with pytest.raises(UnknownNameError, match="unknown tuner 'lorra'; did you mean lora"):
            look_up("lorra")


def test_asking_whether_a_name_is_there_is_no_error():
    shelf = Registry("tuner", {"lora": "a:B"})
    assert "lora" in shelf
    assert "lorra" not in shelf
    assert (shelf.get("lora"), shelf.get("lorra"), shelf.get("lorra", "x")) == ("a:B", None, "x")


@pytest.mark.parametrize("target", ["no_such_module:X", "collections:NoSuch", "collections", "collections.nothing:X"])
def test_a_text_that_points_nowhere(target):
    with pytest.raises(ConfigError, match="'bad' points to"):
        Registry("thing", {"bad": target}).load("bad")


def test_a_plugins_own_mistakes_are_its_own(plugins):
    plugins("plugin_needs", "import no_such_dependency")
    plugins("plugin_slips", "import sys\nsys.no_such_thing")
    shelf = Registry("thing", {"needs": "plugin_needs:X", "slips": "plugin_slips:X"})
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        shelf.load("needs")
    with pytest.raises(AttributeError, match="no_such_thing"):
        shelf.load("slips")


def test_third_parties_add_names_and_replace_none(plugins, monkeypatch):
    plugins("stranger", "class Mine:\n    '''A stranger.'''")
    asked = []

    def entry_points():
        asked.append(True)
        found = [("mine", "m6rec.things"), ("own", "m6rec.things"), ("other", "m6rec.others")]
        return EntryPoints(EntryPoint(name, "stranger:Mine", group) for name, group in found)

    monkeypatch.setattr(registry_module, "entry_points", entry_points)
    monkeypatch.setattr(registry_module, "_installed", functools.cache(registry_module._installed.__wrapped__))
    shelf = Registry("thing", {"own": "collections:Counter"}, group="m6rec.things")
    assert shelf.load("mine").__doc__ == "A stranger."
    assert shelf["own"] == "collections:Counter"
    assert sorted(shelf) == ["mine", "own"]
    assert list(Registry("other", {}, group="m6rec.others")) == ["other"]
    assert asked == [True]  # looking through all installed packages takes long: once is enough, for all shelves
    assert list(Registry("thing", {"own": "collections:Counter"})) == ["own"]


def test_describe(plugins):
    plugins(
        "described",
        'class A:\n    """Do a thing.\n\n    **Source:** Somebody 2020, eq. 3.\n    """\n\n\ndef b():\n    """Do."""\n'
        "\n\nclass C:\n    pass\n",
    )
    shelf = Registry("thing", {name: f"described:{name}" for name in "AbC"})
    assert shelf.describe("A") == ("Do a thing.", "Somebody 2020, eq. 3.")
    assert shelf.describe("b") == ("Do.", "")
    assert shelf.describe("C") == ("", "")
