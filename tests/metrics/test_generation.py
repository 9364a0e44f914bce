"""Figures of texts: against the libraries, against the papers' code, and on a hand-worked case."""

import builtins
import math

import numpy as np
import pytest

from m6rec.errors import DataError, MissingExtraError
from m6rec.metrics import generation as metrics

TEXTS = ["the cat sat on the mat", "a red lamp for the desk"]
REFERENCES = ["the cat is on the mat", "a red lamp on a desk"]


def test_bleu_is_the_one_worked_by_hand():
    # 5 of 6 and 5 of 6 unigrams match (the second "the" of the first text too); no brevity penalty.
    assert metrics.bleu(TEXTS, REFERENCES, 1) == pytest.approx((5 + 4) / 12)
    assert metrics.bleu(REFERENCES, REFERENCES) == pytest.approx(1)
    short = metrics.bleu(["the cat"], ["the cat sat"], 1)
    assert short == pytest.approx(math.exp(1 - 3 / 2))


def test_rouge_is_the_one_worked_by_hand():
    found = metrics.rouge(TEXTS[:1], REFERENCES[:1])
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert found["rougeL"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(("package", "call"), [("sacrebleu.metrics", metrics.bleu), ("rouge_score", metrics.rouge)])
def test_a_missing_library_names_its_extra(monkeypatch, package, call):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith(package):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"m6rec\[text\]"):
        call(TEXTS, REFERENCES)


@pytest.mark.parametrize("call", [metrics.bleu, metrics.rouge])
def test_references_that_do_not_fit_are_refused(call):
    with pytest.raises(DataError, match="references"):
        call(TEXTS, REFERENCES[:1])
    with pytest.raises(DataError, match="references"):
        call([], [])


def peters_diversity(named):
    """PETER's own loop (utils.py, feature_diversity)."""
    total = 0
    for place, one in enumerate(named):
        for other in range(place + 1, len(named)):
            total += len(one & named[other])
    return total / (len(named) * (len(named) - 1) / 2)


def test_diversity_is_peters():
    rng = np.random.default_rng(0)
    named = [{f"f{feature}" for feature in rng.integers(0, 12, rng.integers(0, 6))} for _ in range(40)]
    assert metrics.feature_diversity(named) == pytest.approx(peters_diversity(named))


def test_nothing_to_count_is_zero():
    assert metrics.distinct([""], 2) == 0
    assert metrics.unique_sentence_ratio([]) == 0
    assert metrics.feature_diversity([{"a"}]) == 0
    assert metrics.feature_match_ratio([], []) == 0
    assert metrics.feature_coverage_ratio([{"a"}], frozenset()) == 0


def test_all_figures_of_perfect_texts():
    found = metrics.overlap(REFERENCES, REFERENCES)
    assert found["bleu4"] == pytest.approx(1)
    assert found["rougeL"] == found["unique_sentence_ratio"] == 1
    assert set(found) == {
        *("bleu1", "bleu4", "rouge1", "rouge2", "rougeL"),
        *("distinct1", "distinct2", "unique_sentence_ratio"),
    }
