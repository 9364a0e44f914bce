import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from m6rec.data.sources.film_titles import split_year
from m6rec.data.sources.opendialkg import OpenDialKG, OpenDialKGConfig
from m6rec.data.sources.redial import ReDial, ReDialConfig
from m6rec.errors import DataError, RowError
from tests.contracts.source_contract import SourceContract

INFO = {
    "11": {"name": "Alien (1979)", "genre": ["horror", "sci-fi"], "plot": "A crew.", "director": ["Scott"], "star": []},
    "12": {"name": "Heat", "genre": [], "plot": "", "director": [], "star": ["Al", "Bob"]},
    "13": {"name": "Big (1988)", "genre": ["comedy"], "plot": "A boy.", "director": [], "star": []},
}
GREETING = {"dialog_id": "a", "turn_id": 1, "context": ["", "Hi, what do you like?", "Alien was great"],
            "entity": ["Alien (1979)", "horror"], "rec": ["Heat"], "resp": "See Heat"}  # fmt: skip
SECOND = {"dialog_id": "a", "turn_id": 3, "context": [*GREETING["context"], "See Heat", "Seen it. And Big?"],
          "entity": ["Alien (1979)", "Heat", "Big (1988)"], "rec": ["Alien (1979)", "Nowhere"],
          "resp": "Alien again"}  # fmt: skip
DOUBLE = {"dialog_id": "b", "turn_id": 4, "context": ["I like Heat", "Anything?", "Why Heat?", "It is tense"],
          "entity": ["Heat"], "rec": ["Alien (1979)"], "resp": "Then Alien"}  # fmt: skip


def write(folder: Path, info: Any = INFO, **splits: list[dict[str, Any]]) -> Path:
    (folder / "id2info.json").write_text(json.dumps(info))
    for split, rows in splits.items():
        (folder / f"eval_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class TestReDial(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> ReDial:
        return ReDial(ReDialConfig(str(write(tmp_path, valid=[GREETING, SECOND], test=[DOUBLE]))))

    def test_turns_are_put_together(self, source: ReDial) -> None:
        first, second = source.conversations()
        assert first["split"] == "valid"
        assert [(turn["speaker"], turn["text"], turn["items"]) for turn in first["turns"]] == [
            ("SYSTEM", "Hi, what do you like?", []),
            ("USER", "Alien was great", ["11"]),
            ("SYSTEM", "See Heat", ["12"]),
            ("USER", "Seen it. And Big?", ["13"]),
            ("SYSTEM", "Alien again", ["11"]),
        ]
        assert second["split"] == "test"

    def test_two_texts_of_the_user_in_a_row_stay_the_users(self, source: ReDial) -> None:
        speakers = [turn["speaker"] for turn in list(source.conversations())[1]["turns"]]
        assert speakers == ["USER", "USER", "SYSTEM", "USER", "SYSTEM"]

    def test_events_are_mentions_and_recommendations(self, source: ReDial) -> None:
        events = pa.concat_tables(source.events()).to_pylist()
        assert [tuple(row.values()) for row in events] == [
            ("a", "11", "mention", "valid"), ("a", "12", "recommend", "valid"), ("a", "13", "mention", "valid"),
            ("b", "12", "mention", "test"), ("b", "11", "recommend", "test"),
        ]  # fmt: skip

    def test_items_have_words(self, source: ReDial) -> None:
        assert pa.concat_tables(source.items()).to_pylist()[0] == {
            "item": "11", "title": "Alien", "category": "horror|sci-fi", "description": "A crew.", "year": "1979",
            "director": "Scott", "stars": None,
        }  # fmt: skip


class TestOpenDialKG(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> OpenDialKG:
        info = {"11": {"name": "Alien (1979)", "year": "1979", "actor": ["S", "S", "T"]}, "12": {"name": "Heat"},
                "13": {"name": "Big (1988)", "genre": ["comedy"]}}  # fmt: skip
        return OpenDialKG(OpenDialKGConfig(str(write(tmp_path, info, train=[SECOND], test=[GREETING]))))

    def test_a_dialogue_split_by_turn_is_whole_again_and_has_no_split(self, source: OpenDialKG) -> None:
        (dialogue,) = source.conversations()
        assert "split" not in dialogue
        assert [turn["items"] for turn in dialogue["turns"]][-1] == ["11"]
        assert dialogue["turns"][2]["items"] == ["12"]
        assert all("split" not in table.column_names for table in source.events())

    def test_people_are_named_once(self, source: OpenDialKG) -> None:
        assert pa.concat_tables(source.items()).to_pylist()[0]["actor"] == "S, T"


def test_a_row_without_a_context_is_named(tmp_path: Path) -> None:
    write(tmp_path, valid=[GREETING, {**SECOND, "context": None}])
    with pytest.raises(RowError, match=r"eval_valid\.jsonl, row 2"):
        list(ReDial(ReDialConfig(str(tmp_path))).events())


def test_broken_and_missing_files_say_so(tmp_path: Path) -> None:
    source = ReDial(ReDialConfig(str(tmp_path)))
    with pytest.raises(DataError, match=r"has no id2info\.json"):
        list(source.items())
    (tmp_path / "id2info.json").write_text('{"1": ')
    with pytest.raises(DataError, match="no whole JSON file"):
        list(source.items())
    write(tmp_path)
    with pytest.raises(DataError, match="has no eval_train, eval_valid or eval_test"):
        list(source.conversations())


@pytest.mark.parametrize(
    ("title", "parts"),
    [("Matrix, The (1999)", ("The Matrix", "1999")), ("Girl, Interrupted (1999)", ("Girl, Interrupted", "1999")),
     ("Death Note (2006-2007)", ("Death Note", "2006")), ("1984", ("1984", None))],
)  # fmt: skip
def test_years_and_articles(title: str, parts: tuple[str, str | None]) -> None:
    assert split_year(title) == parts


def test_real_redial(shared_data: Path) -> None:
    dialogues = list(ReDial(ReDialConfig(str(shared_data / "redial"))).conversations())
    splits = [dialogue["split"] for dialogue in dialogues]
    assert (splits.count("valid"), splits.count("test")) == (985, 1_318)


def test_real_opendialkg(shared_data: Path) -> None:
    source = OpenDialKG(OpenDialKGConfig(str(shared_data / "opendialkg")))
    assert sum(1 for _ in source.conversations()) == 5_170
    assert sum(len(table) for table in source.items()) == 3_672
