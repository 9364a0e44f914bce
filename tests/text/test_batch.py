import torch

from m6rec.text.batch import collate
from m6rec.text.segments import Layout, Segment


def test_rows_are_padded_on_the_right(letters):
    long = Layout((Segment("a", "abc", "item", block=0), Segment("b", "d", "item", block=1)))
    branch = Layout((), ((Segment("c", "[BOS]", "control"), Segment("d", "e", "item")),))
    batch = collate(letters.layouts([long, branch, Layout(())]), letters.pad_id)
    assert batch.ids.tolist() == [[0, 1, 2, 3], [29, 4, 26, 26], [26, 26, 26, 26]]
    assert batch.keep.tolist() == [[True] * 4, [True, True, False, False], [False] * 4]
    assert batch.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert batch.blocks.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert batch.branches.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert batch.conditions is None
    numbers = {name: column for name, column in vars(batch).items() if name not in ("keep", "conditions")}
    assert {column.dtype for column in numbers.values()} == {torch.int64}


def test_no_rows():
    assert collate([], 0).ids.shape == (0, 0)


def test_rows_are_taken_in_the_order_that_is_asked_for(letters):
    layouts = [Layout((Segment("a", text, "item"),)) for text in ("abc", "d", "ef")]
    batch = collate(letters.layouts(layouts), letters.pad_id)
    taken = batch.take(torch.tensor([2, 0]))
    assert taken.conditions is None
    for name in vars(taken).keys() - {"conditions"}:
        assert torch.equal(getattr(taken, name), getattr(batch, name)[[2, 0]])
