import numpy as np

from m6rec.data.store import Dataset
from m6rec.tasks.retrieval.segment_table import SegmentTable


def test_items_come_first_and_searches_after(shop):
    dataset = Dataset.open(shop)
    known = dataset.histories().before("test")
    table = SegmentTable.of(dataset, known)
    assert table.num_items == 36
    assert sorted(table.searches) == sorted(set(table.searches))
    assert len(table.searches) > 2
    for row, item, query, split in zip(
        range(len(dataset.interactions)),
        dataset.interactions["item"][:],
        dataset.interactions["query"][:],
        dataset.interactions["split"][:],
        strict=True,
    ):
        segment = table.by_row[row]
        if split == 2:
            assert segment == -1  # a test event has no words yet
        elif item >= 0:
            assert segment == item
        else:
            assert table.searches[segment - 36] == query


def test_what_has_no_words_is_left_out(shop):
    dataset = Dataset.open(shop)
    known = dataset.histories().before("test")
    table = SegmentTable.of(dataset, known)
    silent = np.flatnonzero(known.items < 0)[:3]
    table.by_row[known.rows[silent]] = -1
    left, segments = table.readable(known)
    assert left.num_events == known.num_events - len(silent)
    assert (segments >= 0).all()
    assert (segments[left.items >= 0] == left.items[left.items >= 0]).all()
    assert left.num_users == known.num_users
    whole, _ = SegmentTable.of(dataset, known).readable(known)
    assert whole is known
