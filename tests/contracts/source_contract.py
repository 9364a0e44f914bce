"""What every source must keep. Inherit and give the fixture ``source``."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from m6rec.config import field_help
from m6rec.data.prepare import prepare
from m6rec.data.sources import SOURCES
from m6rec.data.sources.base import Source
from m6rec.data.store import Dataset

TYPES = {
    "events": {"user": pa.string(), "item": pa.string(), "time": pa.int64(), "verb": pa.string(), "query": pa.string()},
    "items": dict.fromkeys(("item", "title", "brand", "category", "description"), pa.string()),
    "users": {"user": pa.string()},
    "reviews": {"user": pa.string(), "item": pa.string(), "text": pa.string(), "time": pa.int64()},
    "impressions": {"user": pa.string(), "item": pa.string(), "time": pa.int64()},
}


class SourceContract:
    """Inherit, and give the fixture ``source`` over a folder that holds at least three events of one user."""

    @pytest.fixture
    def source(self) -> Any:
        raise NotImplementedError

    def test_is_on_the_shelf_and_keeps_the_protocol(self, source: Any) -> None:
        assert isinstance(source, Source)
        assert isinstance(source, SOURCES.load(source.name))
        assert source.licence
        assert (Path(__file__).parents[2] / "data_templates" / f"{source.domain}.yaml").is_file()

    def test_config_is_frozen_documented_and_begins_with_the_path(self, source: Any) -> None:
        fields = [field.name for field in dataclasses.fields(source.Config)]
        assert fields[0] == "path"
        assert set(field_help(source.Config)) == set(fields)
        assert all(field_help(source.Config).values())
        with pytest.raises(dataclasses.FrozenInstanceError):
            source.config.path = "elsewhere"

    def test_tables_have_our_columns_and_types(self, source: Any) -> None:
        for name, types in TYPES.items():
            for table in getattr(source, name)():
                for column, kind in types.items():
                    if column in table.column_names:
                        assert table.schema.field(column).type == kind, f"{name}.{column}"
        assert all(table["user"].null_count == 0 for table in source.events())

    def test_reads_the_same_twice(self, source: Any) -> None:
        for name in TYPES:
            pairs = itertools.zip_longest(getattr(source, name)(), getattr(source, name)())
            assert all(first.equals(second) for first, second in pairs)
        assert list(source.conversations()) == list(source.conversations())

    def test_items_are_told_once_and_everything_named_is_one_of_them(self, source: Any) -> None:
        keys = [key for table in source.items() for key in table["item"].to_pylist()]
        assert len(keys) == len(set(keys))
        if keys:
            tables = itertools.chain(source.events(), source.reviews(), source.impressions())
            assert {key for table in tables for key in table["item"].to_pylist() if key is not None} <= set(keys)
            turns = (turn for dialogue in source.conversations() for turn in dialogue["turns"])
            assert {key for turn in turns for key in turn["items"]} <= set(keys)

    def test_dialogues_have_speakers_and_texts(self, source: Any) -> None:
        dialogues = list(source.conversations())
        assert len({dialogue["id"] for dialogue in dialogues}) == len(dialogues)
        for dialogue in dialogues:
            assert dialogue.get("split", "train") in ("train", "valid", "test")
            assert all(turn["speaker"] in ("USER", "SYSTEM") and turn["text"] for turn in dialogue["turns"])

    def test_prepares_to_a_dataset(self, source: Any, tmp_path: Path) -> None:
        manifest = prepare(source, tmp_path / "out")
        dataset = Dataset.open(tmp_path / "out")
        assert len(dataset.interactions) == sum(len(table) for table in source.events())
        assert manifest.source == source.name
