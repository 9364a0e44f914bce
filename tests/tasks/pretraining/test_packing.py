"""Packed documents fit, come once, do not see each other, and cost what they cost alone."""

import numpy as np
import pytest
import torch

from m6rec.tasks.pretraining.objectives import Objectives
from m6rec.tasks.pretraining.packing import NOTHING, lay_out, pack
from m6rec.tasks.pretraining.task import PretrainingBatch, row_nats
from m6rec.text.batch import collate
from m6rec.text.tokenize import TextTokenizer

FAMILIES = ["bert", "gpt2", "llama", "t5"]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_every_document_stands_once_and_fits(share):
    rng = np.random.default_rng(0)
    rooms, sourced = rng.integers(5, 60, 400), rng.random(400) < share
    rows = pack(rooms, 64, sourced, rng)
    assert sorted(np.concatenate(rows).tolist()) == list(range(400))
    assert all(rooms[row].sum() <= 64 for row in rows)
    assert all(sourced[row].sum() <= 1 and not sourced[row[1:]].any() for row in rows)
    if share == 0:
        assert rooms.sum() > 0.9 * 64 * len(rows)


@pytest.fixture
def examples(tiny_backbone):
    """Return a backbone, and three examples in its tokens: the first with a source, as a row has them."""

    def made(model_type):
        backbone = tiny_backbone(model_type)
        words = TextTokenizer(backbone.tokenizer)
        pieces = [np.array(words.text(text), dtype=np.int32) for text in ("red shoes", "blue lamp case", "warm book")]
        objectives = Objectives(words.control_ids)
        rng = np.random.default_rng(0)
        found = [
            objectives.infilling(pieces, rng),
            objectives.generation(pieces[:2]),
            objectives.generation(pieces[1:]),
        ]
        return backbone, words, found

    return made


def as_batch(rows, words):
    tokens = collate([row.layout for row in rows], words.pad_id)
    labels = torch.full_like(tokens.ids, NOTHING)
    for number, row in enumerate(rows):
        labels[number, : len(row.labels)] = torch.from_numpy(row.labels)
    return PretrainingBatch(tokens, labels)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_packed_costs_what_unpacked_costs(model_type, examples):
    backbone, words, found = examples(model_type)
    forward = backbone.family == "causal"
    for dense in (False, True):
        packed = as_batch([lay_out(found, forward, dense)], words)
        alone = as_batch([lay_out([example], forward, dense) for example in found], words)
        together, count = row_nats(backbone, packed)
        apart, counts = row_nats(backbone, alone)
        assert count == [sum(counts)]
        assert together[0] == pytest.approx(sum(apart), rel=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_document_sees_another(model_type, examples):
    backbone, words, found = examples(model_type)
    row = lay_out(found, backbone.family == "causal", dense=False)
    batch = as_batch([row], words)
    before = backbone(batch.tokens)
    others = batch.tokens.ids.clone()
    first = batch.tokens.branches <= 1  # the example with the source
    others[first] = others[first].roll(1)
    after = backbone(type(batch.tokens)(**{**vars(batch.tokens), "ids": others}))
    assert torch.allclose(before[~first], after[~first], atol=1e-5)
    assert not torch.allclose(before[first], after[first], atol=1e-3)


def test_a_forward_reader_learns_sources_only_where_it_is_told_to(examples):
    _, _, found = examples("llama")
    sparse, dense = (lay_out(found, True, dense).labels != NOTHING for dense in (False, True))
    assert dense.sum() == sparse.sum() + found[0].source_words.sum()
    assert (lay_out(found, False, True).labels != NOTHING).sum() == sparse.sum()
