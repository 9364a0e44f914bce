"""How good are texts? Overlap with references, how much they differ, and what they name. Knows no model and no task.

Every figure is a share or a plain number, never a percentage: the papers' tables are these times 100.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence, Set
from typing import Any

from m6rec.errors import DataError, needs

ROUGES = ("rouge1", "rouge2", "rougeL")


def bleu(texts: Sequence[str], references: Sequence[str], order: int = 4) -> float:
    """Return corpus BLEU up to ``order``-grams, by sacrebleu (tokenizer 13a, exponential smoothing).

    Args:
        texts: what was written.
        references: one for each.
        order: longest n-gram: 1 and 4 in the papers.

    Raises:
        MissingExtraError: the extra ``text`` is not installed.
        DataError: not one reference a text, or no text.

    Differs: PETER's logs count with the script of Google's NMT, without smoothing and on their own tokens.
    """
    with needs("text"):
        from sacrebleu.metrics import BLEU
    _check(texts, references)
    score: float = BLEU(max_ngram_order=order).corpus_score(list(texts), [list(references)]).score
    return score / 100


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the mean F-measure of ROUGE-1, ROUGE-2 and ROUGE-L, by rouge-score, without stemming.

    Args:
        texts: what was written.
        references: one for each.

    Raises:
        MissingExtraError: the extra ``text`` is not installed.
        DataError: not one reference a text, or no text.
    """
    with needs("text"):
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    _check(texts, references)
    scorer: Any = RougeScorer(list(ROUGES), tokenizer=DefaultTokenizer(use_stemmer=False))
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in ROUGES}


def distinct(texts: Sequence[str], n: int) -> float:
    """Return how many of all n-grams of all texts are different: distinct n-grams over n-grams.

    Source: Li et al., A Diversity-Promoting Objective Function (arXiv 1510.03055), section 5.

    >>> distinct(["a red lamp", "a red shirt"], 1), distinct(["a red lamp", "a red shirt"], 2)
    (0.6666666666666666, 0.75)
    """
    grams = [gram for text in texts for gram in _ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def unique_sentence_ratio(texts: Sequence[str]) -> float:
    """Return how many of the texts are different.

    Source: Li et al., NETE (CIKM 2020), as PETER's code counts it.

    >>> unique_sentence_ratio(["a red lamp", "a  red lamp", "a shirt", "a book"])
    0.75
    """
    return len({tuple(text.split()) for text in texts}) / len(texts) if texts else 0.0


def feature_match_ratio(named: Sequence[Set[str]], features: Sequence[str]) -> float:
    """Return how many texts name the feature of their reference.

    Args:
        named: features that each text names.
        features: the true one of each.

    Source: PETER (arXiv 2105.11601), section 5.3, after NETE.

    >>> feature_match_ratio([{"style"}, {"price", "style"}, set()], ["style", "price", "price"])
    0.6666666666666666
    """
    pairs = zip(named, features, strict=True)
    return sum(feature in names for names, feature in pairs) / len(features) if features else 0.0


def feature_coverage_ratio(named: Sequence[Set[str]], features: Set[str]) -> float:
    """Return how many of all features are named by any text.

    Source: PETER (arXiv 2105.11601), section 5.3, after NETE.

    >>> feature_coverage_ratio([{"style"}, {"style", "price"}], {"style", "price", "size", "colour"})
    0.5
    """
    found = frozenset[str]().union(*named) & features
    return len(found) / len(features) if features else 0.0


def feature_diversity(named: Sequence[Set[str]]) -> float:
    """Return how many features two texts have in common, on average over all pairs: lower is more diverse.

    Source: PETER (arXiv 2105.11601), section 5.3, DIV.
    Differs: counted feature by feature, which gives the same number without a loop over pairs.

    >>> feature_diversity([{"style"}, {"style", "price"}, {"price", "style"}])
    1.3333333333333333
    """
    counts = Counter(feature for names in named for feature in names)
    pairs = len(named) * (len(named) - 1) / 2
    return sum(count * (count - 1) / 2 for count in counts.values()) / pairs if pairs else 0.0


def perplexity(nats: float, tokens: float) -> float:
    """Return the perplexity a token of texts whose log-likelihoods sum to ``-nats``.

    >>> round(perplexity(2 * math.log(8), 2), 6)
    8.0
    """
    return math.exp(nats / tokens)


def overlap(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return everything that compares texts with references, and how much the texts differ among themselves.

    Raises:
        MissingExtraError: the extra ``text`` is not installed.
        DataError: not one reference a text, or no text.
    """
    return {
        "bleu1": bleu(texts, references, 1),
        "bleu4": bleu(texts, references, 4),
        **rouge(texts, references),
        "distinct1": distinct(texts, 1),
        "distinct2": distinct(texts, 2),
        "unique_sentence_ratio": unique_sentence_ratio(texts),
    }


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(itertools.islice(words, start, None) for start in range(n)), strict=False))


def _check(texts: Sequence[str], references: Sequence[str]) -> None:
    if not texts or len(texts) != len(references):
        raise DataError(f"got {len(texts)} texts and {len(references)} references, expected one for each, and some")
