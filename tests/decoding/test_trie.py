"""Names between marks: only given ones, each once, and at least as many as asked for."""

import pytest
import torch

from m6rec.decoding.trie import NamesInMarks, Trie, split
from m6rec.errors import ConfigError

MARK, END, SIZE = 9, 8, 10
NAMES = [[1, 2], [1, 3], [4], [1, 2, 5]]


def constraint(**options):
    options = {"max_tokens": 12, "language": 0.0, **options}
    scores = [-1.0, -2.0, -3.0, -4.0]
    return NamesInMarks(Trie(NAMES), scores, MARK, frozenset({END}), **options)


def allowed(found):
    return set(torch.nonzero(found > -torch.inf)[:, 0].tolist())


def write(rule, logits=None, steps=12):
    """Take the likeliest token until the end."""
    ids = []
    while len(ids) < steps:
        token = int(rule(torch.tensor(ids, dtype=torch.long), torch.zeros(SIZE) if logits is None else logits).argmax())
        if token == END:
            break
        ids.append(token)
    return ids


def test_inside_marks_only_names_go_on():
    rule = constraint()
    assert allowed(rule(torch.tensor([0, MARK]), torch.zeros(SIZE))) == {1, 4}
    assert allowed(rule(torch.tensor([0, MARK, 1]), torch.zeros(SIZE))) == {2, 3}
    # A name that is the beginning of another may end or go on.
    assert allowed(rule(torch.tensor([0, MARK, 1, 2]), torch.zeros(SIZE))) == {MARK, 5}


def test_each_way_gets_the_probability_that_lies_behind_it():
    found = constraint()(torch.tensor([MARK, 1]), torch.randn(SIZE))
    scores = torch.tensor([-1.0, -2.0, -4.0])
    assert found[3] == pytest.approx(-2.0)
    assert found[2] == pytest.approx(float(scores[[0, 2]].logsumexp(0)))


def test_the_model_has_its_word_in_the_choice():
    logits = torch.zeros(SIZE)
    logits[3] = 30.0
    assert int(constraint(language=1.0)(torch.tensor([MARK, 1]), logits).argmax()) == 3
    assert int(constraint(language=0.0)(torch.tensor([MARK, 1]), logits).argmax()) == 2


def test_a_name_comes_once_and_no_more_than_allowed():
    rule = constraint(most=2)
    after = torch.tensor([MARK, 4, MARK, 0, MARK])
    assert allowed(rule(after, torch.zeros(SIZE))) == {1}
    assert MARK not in allowed(rule(torch.tensor([MARK, 4, MARK, MARK, 1, 3, MARK]), torch.zeros(SIZE)))


def test_the_answer_does_not_end_before_a_name_nor_inside_one():
    rule = constraint(max_tokens=7)
    logits = torch.zeros(SIZE)
    logits[0] = 5.0  # would rather go on with words for ever
    ids = write(rule, logits, steps=7)
    done, open_name = rule.read(ids)
    assert len(ids) == 7
    assert (done, open_name) == ([0], None)
    assert END not in allowed(rule(torch.tensor([0]), torch.zeros(SIZE)))
    assert END not in allowed(rule(torch.tensor([MARK, 1]), torch.zeros(SIZE)))
    assert END in allowed(rule(torch.tensor([MARK, 4, MARK]), torch.zeros(SIZE)))


def test_without_names_there_is_no_mark():
    rule = NamesInMarks(Trie([]), [], MARK, frozenset({END}), 4)
    assert allowed(rule(torch.tensor([0]), torch.zeros(SIZE))) == set(range(SIZE)) - {MARK}


def test_phrases_say_where_names_stand():
    rule = constraint(phrases=Trie([[0, MARK, 7], [0, MARK, 6, MARK, 7], [5]]))
    assert allowed(rule(torch.tensor([], dtype=torch.long), torch.zeros(SIZE))) == {0, 5}
    assert allowed(rule(torch.tensor([0]), torch.zeros(SIZE))) == {MARK}
    assert allowed(rule(torch.tensor([0, MARK, 4, MARK]), torch.zeros(SIZE))) == {6, 7}
    assert allowed(rule(torch.tensor([0, MARK, 4, MARK, 6, MARK, 1, 3, MARK]), torch.zeros(SIZE))) == {7}
    assert allowed(rule(torch.tensor([0, MARK, 4, MARK, 7]), torch.zeros(SIZE))) == {END}
    assert allowed(rule(torch.tensor([5]), torch.zeros(SIZE))) == {END}


def test_a_forbidden_piece_of_a_name_can_still_be_written():
    """Penalties and special tokens come first; a name stands as the catalogue has it."""
    logits = torch.full((SIZE,), -torch.inf)
    logits[0] = 0.0
    assert allowed(constraint(language=0.5)(torch.tensor([MARK]), logits)) == {1, 4}


def test_of_equal_names_the_first_is_kept():
    trie = Trie([[1, 2], [1, 2]])
    assert trie.find([1, 2]).ends == 0
    assert trie.root.names == [0]


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="no tokens"):
        Trie([[1], []])
    with pytest.raises(ConfigError, match="expected 5 or more"):
        constraint(max_tokens=4)


def test_words_and_names_are_told_apart():
    assert split([], MARK) == [[]]
    assert split([MARK, 1, MARK], MARK) == [[], [1], []]
