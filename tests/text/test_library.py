import pytest

from m6rec.errors import TemplateError
from m6rec.text.library import find, names


def test_shipped_files_are_found():
    assert {"default", "beauty", "movies", "world"} <= set(names("data_templates"))
    assert {"retrieval", "retrieval-source", "ranking", "item"} <= set(names("prompts"))


def test_own_folder_wins(tmp_path, monkeypatch):
    own = tmp_path / "prompts" / "item.yaml"
    own.parent.mkdir()
    own.write_text("trunk: []")
    assert find("prompts", "item", tmp_path) == own
    assert find("prompts", "item") != own
    monkeypatch.setenv("M6REC_TEMPLATES", str(tmp_path))
    assert find("prompts", "item") == own
    assert find("prompts", "ranking").stem == "ranking"


def test_a_path_is_taken_as_it_is(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("trunk: []")
    assert find("prompts", own) == own
    with pytest.raises(TemplateError, match="which is no file"):
        find("prompts", tmp_path / "yours.yaml")


def test_misspelt_name_gets_the_nearest():
    with pytest.raises(TemplateError, match="no data_templates file called 'beuty'; did you mean beauty"):
        find("data_templates", "beuty")
