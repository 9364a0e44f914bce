"""The two objectives: what is left out and what is kept are together the text, and nothing else is learnt."""

import numpy as np
import pytest

from m6rec.tasks.pretraining.objectives import Objectives, draw_spans

CONTROL = {"[BOS']": 90, "[EOS']": 91, "[BOS]": 92, "[EOS]": 93, "[MASK]": 94}
OBJECTIVES = Objectives(CONTROL)


def document(rng):
    return [rng.integers(0, 90, rng.integers(1, 9)).astype(np.int32) for _ in range(rng.integers(1, 6))]


def split_at_blanks(ids):
    return np.split(ids, np.flatnonzero(ids == CONTROL["[MASK]"]))


@pytest.mark.parametrize("seed", range(30))
def test_the_answers_put_back_into_the_blanks_are_the_text(seed):
    rng = np.random.default_rng(seed)
    pieces = document(rng)
    regions = OBJECTIVES.infilling(pieces, rng)
    kept, answers = (split_at_blanks(ids[1:-1]) for ids in (regions.source, regions.target))
    assert len(kept) == len(answers) + 1
    assert len(answers) <= len(pieces)
    blanks = [part for pair in zip(kept, [*answers, kept[0][:0]], strict=True) for part in pair]
    rebuilt = [token for part in blanks for token in part if token != CONTROL["[MASK]"]]
    assert rebuilt == np.concatenate(pieces).tolist()
    assert all(len(answer[answer != CONTROL["[MASK]"]]) for answer in answers)
    assert (regions.target[0], regions.target[-1]) == (92, 93)
    assert (regions.source[0], regions.source[-1]) == (90, 91)


@pytest.mark.parametrize("seed", range(30))
def test_spans_lie_apart_and_cover_their_share(seed):
    rng = np.random.default_rng(seed)
    length, count = int(rng.integers(1, 60)), int(rng.integers(1, 8))
    starts, stops = draw_spans(length, count, 0.3, rng)
    assert starts[0] >= 0
    assert stops[-1] <= length
    assert all(start < stop for start, stop in zip(starts, stops, strict=True))
    assert all(stop < start for stop, start in zip(stops, starts[1:], strict=False))
    if length >= 4 * count:
        assert sum(stops) - sum(starts) == max(count, round(0.3 * length))


@pytest.mark.parametrize("given", [0, 1, 3])
def test_generation_gives_the_first_pieces_and_asks_for_each_of_the_others(given):
    pieces = [np.array([n, n], dtype=np.int32) for n in range(4)]
    regions = OBJECTIVES.generation(pieces, given)
    expected = [token for n in range(given) for token in (n, n)]
    assert regions.source.tolist() == ([90, *expected, 91] if given else [])
    assert regions.target.tolist() == [token for n in range(given, 4) for token in (92, n, n, 93)]
    # Where a sentence begins is given; how it goes on and ends is learnt.
    assert regions.target[~regions.learnt].tolist() == [92] * (4 - given)
    assert regions.source[regions.source_words].tolist() == expected


def test_blanks_are_not_learnt_in_the_source():
    regions = OBJECTIVES.infilling([np.arange(20, dtype=np.int32)], np.random.default_rng(0))
    assert CONTROL["[MASK]"] in regions.source
    assert regions.source[~regions.source_words].tolist() == [90, 94, 91]
