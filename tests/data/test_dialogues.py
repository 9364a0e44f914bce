"""Dialogues out of a dataset folder, and their moments as queries."""

import pytest

from m6rec.data.dialogues import Moment, Turn, as_queries, moments, named, read_dialogues
from m6rec.data.store import Dataset
from m6rec.errors import DataError
from tests.little_talks import prepare_talks


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return prepare_talks(tmp_path_factory.mktemp("talks") / "data")


def test_splits_share_no_dialogue(talks):
    found = {split: {dialogue.key for dialogue in read_dialogues(talks, split)} for split in ("train", "valid", "test")}
    assert {split: len(keys) for split, keys in found.items()} == {"train": 32, "valid": 4, "test": 4}
    assert len(set.union(*found.values())) == 40


def test_a_moment_knows_what_was_said_before_it_and_nothing_else(talks):
    dialogue = read_dialogues(talks, "train")[0]
    first, second, third = moments([dialogue])
    assert (first.turns, first.recommends) == ((), False)
    assert second.turns == dialogue.turns[:2]
    assert second.reply == dialogue.turns[2]
    assert set(third.reply.items) >= set(named(second.turns))


def test_one_query_a_recommended_item(talks):
    asked = [moment for moment in moments(read_dialogues(talks, "test")) if moment.recommends]
    queries = as_queries(asked, talks.num_items)
    assert len(queries) == sum(len(moment.reply.items) for moment in asked)
    for row, (user, target) in enumerate(zip(queries.users, queries.targets, strict=True)):
        assert queries.targets_of(row).tolist() == [target]
        assert queries.history.items[queries.history.of(user)].tolist() == named(asked[user].turns)


def test_bad_input(talks, tmp_path):
    with pytest.raises(DataError, match="nothing is recommended"):
        as_queries([Moment(0, (), Turn("SYSTEM", "hello"))], 3)
    broken = Dataset(tmp_path, talks.manifest)
    assert read_dialogues(broken, "train") == []
    (tmp_path / "conversations.jsonl").write_text('{"id": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"conversations\.jsonl, line 1"):
        read_dialogues(broken, "train")
