"""Kept labels: any batch of them is what was written, an interruption costs a part, and damage is told."""

import pytest
import torch

from m6rec.distillation import stored
from m6rec.distillation.stored import LabelStore, batch_labels, write_labels
from m6rec.errors import DistillationError

KEY = {"teacher": "v1", "data": "d"}
# Points of each example: some have none, and batches hold them out of order.
COUNTS = [2, 0, 3, 1, 4, 1, 2]


def label(indices):
    rows = torch.cat([torch.full((COUNTS[i],), row) for row, i in enumerate(indices)]).long()
    values = torch.cat([torch.arange(COUNTS[i]) + 10.0 * i for i in indices])
    order = torch.arange(len(rows)).flip(0)  # within a batch, later examples first
    order = order[rows[order].argsort(stable=True, descending=True)]
    return {"scores": values[order], "ids": values[order].int()}, rows[order]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(stored, "PART_BATCHES", 2)


@pytest.fixture
def folder(tmp_path):
    assert write_labels(tmp_path / "labels", KEY, len(COUNTS), 2, label) == len(COUNTS)
    return tmp_path / "labels"


def test_any_batch_is_what_was_written(folder):
    store = LabelStore.open(folder, KEY, len(COUNTS))
    assert store.num_bytes == sum(path.stat().st_size for path in folder.glob("part-*"))
    for indices in ([0], [6, 2, 4], [1, 5], list(range(7))):
        found = batch_labels(store, indices)
        wanted = [10.0 * i + point for i in indices for point in reversed(range(COUNTS[i]))]
        assert found["scores"].tolist() == wanted
        assert found["ids"].tolist() == [int(value) for value in wanted]


def test_what_is_whole_is_not_made_again(folder):
    assert write_labels(folder, KEY, len(COUNTS), 2, label) == 0


def test_an_interruption_costs_a_part(tmp_path):
    calls = []

    def failing(indices):
        calls.append(indices)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return label(indices)

    with pytest.raises(KeyboardInterrupt):
        write_labels(tmp_path, KEY, len(COUNTS), 2, failing)
    with pytest.raises(DistillationError, match="labels of 4 examples, expected 7"):
        LabelStore.open(tmp_path, KEY, len(COUNTS))
    assert write_labels(tmp_path, KEY, len(COUNTS), 2, label) == 3
    LabelStore.open(tmp_path, KEY, len(COUNTS))


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-3]), lambda path: path.unlink()])
def test_a_part_that_is_cut_short_or_missing_is_told(folder, damage):
    damage(folder / "part-00001.safetensors")
    for read in (LabelStore.open, lambda *words: write_labels(*words, 2, label)):
        with pytest.raises(DistillationError, match=r"part-00001.* write"):
            read(folder, KEY, len(COUNTS))


def test_a_flipped_bit_is_told(folder):
    path = folder / "part-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DistillationError, match="cut short or damaged"):
        LabelStore.open(folder, KEY, len(COUNTS))


def test_other_labels_are_not_taken(folder, tmp_path):
    with pytest.raises(DistillationError, match="labels of another teacher"):
        LabelStore.open(folder, {**KEY, "teacher": "v2"}, len(COUNTS))
    with pytest.raises(DistillationError, match="holds other labels"):
        write_labels(folder, {**KEY, "teacher": "v2"}, len(COUNTS), 2, label)
    with pytest.raises(DistillationError, match="holds no labels"):
        LabelStore.open(tmp_path / "nothing", KEY, len(COUNTS))
