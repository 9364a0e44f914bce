"""A late-interacting run as two graphs with its segments kept between: it answers as the run does, kept or not."""

import numpy as np
import pytest
import torch

import m6rec
from m6rec.edge.segments import SplitFeed, cut
from m6rec.errors import BackboneError, RunError
from m6rec.late_interaction.cache import SegmentCache
from m6rec.late_interaction.segments import cut as cut_batch
from m6rec.text.batch import collate
from m6rec.text.tokenize import TokenizedLayout
from tests.little_shop import SMALL

HISTORY, CANDIDATES = "red shirt; blue lamp", ["green shoes", "soft book", "warm phone", "winter chair", "red lamp"]


@pytest.fixture(scope="module")
def late(shop, tiny_folder, tmp_path_factory):
    """Return a function from overrides to a little late-interacting run."""
    from m6rec.assemble import train_run
    from m6rec.recipe import read_recipe

    def run(name, *overrides):
        out = tmp_path_factory.mktemp("late") / name
        settings = [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}", *SMALL["ranking"]]
        train_run(read_recipe("ranking-late", [*settings, "late_interaction.layers=2", *overrides]))
        return out

    return run


@pytest.fixture(scope="module", params=["lora", "option"])
def pair(request, late, tmp_path_factory):
    """Return a run and its export in float32; option tuning brings virtual tokens, which are a segment too."""
    pytest.importorskip("onnxscript")
    from m6rec.workflows.compression import compress_run

    run = late(request.param, f"tuner.name={request.param}", *(["tuner.num_classes=2"] * (request.param == "option")))
    edge = tmp_path_factory.mktemp("edge") / "split"
    card = compress_run(run, "quantize", [f"out={edge}", "precision=fp32"])
    assert card["parity"] < 1e-4
    return run, edge


def scores(recommender, history=HISTORY, candidates=CANDIDATES):
    return {item.id: item.score for item in recommender.rank(history, candidates)}


def test_it_answers_as_the_run_does(pair, engine):
    run, edge = m6rec.load(pair[0]), m6rec.load(pair[1], engine=engine)
    assert scores(edge) == pytest.approx(scores(run), abs=1e-5)


def test_what_is_kept_changes_nothing_and_is_not_read_again(pair, engine):
    edge = m6rec.load(pair[1], engine=engine)
    cold, misses = scores(edge), edge.graphs.cache.stats.misses
    assert scores(edge) == pytest.approx(cold, abs=1e-6)
    assert edge.graphs.cache.stats.misses == misses
    other = scores(edge, "red shirt; blue lamp; soft book")
    fresh = scores(m6rec.load(pair[1], engine=engine), "red shirt; blue lamp; soft book")
    assert other == pytest.approx(fresh, abs=1e-6)


def test_eight_bits(pair, tmp_path):
    from m6rec.workflows.compression import compress_run

    card = compress_run(pair[0], "quantize", [f"out={tmp_path / 'int8'}"])
    assert card["graph_megabytes"] < card["float32_megabytes"]
    assert scores(m6rec.load(tmp_path / "int8")) == pytest.approx(scores(m6rec.load(pair[0])), abs=0.1)


def test_a_way_that_is_too_long():
    feed = SplitFeed(lambda inputs: np.zeros((*inputs["ids"].shape, 4), np.float32), SegmentCache("v"), (), 1)
    with pytest.raises(BackboneError, match="segments on the way to a candidate, expected at most 1; show fewer"):
        feed(random_tree(np.random.default_rng(0)))


def test_pooled_segments_are_not_exported(late, tmp_path):
    from m6rec.workflows.compression import compress_run

    run = late("pooled", "late_interaction.granularity=pooled")
    with pytest.raises(RunError, match="expected token granularity"):
        compress_run(run, "quantize", [f"out={tmp_path / 'out'}"])


@pytest.mark.parametrize("seed", range(8))
def test_a_tree_is_cut_as_a_batch_is(seed):
    tree = random_tree(np.random.default_rng(seed))
    found, batch = cut(tree), cut_batch(collate([tree], 0))
    assert torch.from_numpy(found.path).equal(batch.path[0])
    wanted = {
        (*row[row >= 0].tolist(), target)
        for row, target in zip(batch.table.ids, batch.table.is_target.tolist(), strict=True)
    }
    assert {(*words.tolist(), target) for words, target in zip(found.words, found.targets, strict=True)} == wanted


def random_tree(rng):
    """Return a trunk of some blocks, and branches that hang on some of them."""
    num_blocks, rows = int(rng.integers(1, 5)), []
    for block in range(num_blocks):
        rows += [(block, 0, 2 * block + part) for part in range(2) for _ in range(rng.integers(1, 4))]
    segment = 2 * num_blocks
    for branch in range(1, int(rng.integers(1, 4)) + 1):
        block = int(rng.integers(num_blocks))
        for _ in range(rng.integers(1, 4)):
            rows += [(block, branch, segment)] * int(rng.integers(1, 4))
            segment += 1
    blocks, branches, segments = np.array(rows, np.int32).T
    ids = rng.integers(1, 6, len(rows)).astype(np.int32)
    return TokenizedLayout(ids, np.arange(len(rows), dtype=np.int32), blocks, branches, segments)
