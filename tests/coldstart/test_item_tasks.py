"""Item tasks: what is known beforehand leaves a row's own judgement out; questions come back in their order."""

import numpy as np
import pytest
import torch

from m6rec.coldstart.item_phases import PHASES
from m6rec.coldstart.item_tasks import TASTE_STRENGTH, Facts, TaskCutter
from tests.coldstart.item_toy import toy


@pytest.mark.parametrize("phase", PHASES)
def test_what_is_expected_of_new_items_is_the_closed_form(phase) -> None:
    cutter = toy()
    phases = cutter.phases
    known, asked = (phases.rows.take(rows) for rows in (phases.known("test", phase), phases.queries("test")))
    _, questions = cutter.phase("test", phase)
    for kind, each in enumerate(cutter.expectations):
        priors = each.closed.priors(cutter.facts.attributes.numpy())
        levels = each.closed.item_levels(known.users, known.items, (known.values, known.labels)[kind], priors)
        direct = each.closed.scores(asked.users, asked.items, levels)
        found = cutter.in_order("test", questions.expected[..., kind], questions) * each.scale + each.closed.mean
        np.testing.assert_allclose(found, direct, atol=1e-5)
    np.testing.assert_array_equal(cutter.in_order("test", questions.labels, questions), asked.labels)
    np.testing.assert_array_equal(cutter.in_order("test", questions.users.double(), questions), asked.users)


def test_a_known_judgement_is_expected_from_the_others() -> None:
    cutter = toy()
    item = int(cutter.phases.items["test"][0])
    rows = np.flatnonzero(cutter.phases.rows.items == item)[:3]
    known, _ = cutter.cut(np.array([item]), [rows], [rows[:0]])
    for place in range(3):
        others = np.delete(rows, place)
        _, alone = cutter.cut(np.array([item]), [others], [rows[place : place + 1]])
        torch.testing.assert_close(known.expected[0, place], alone.expected[0, 0])


def test_taste_and_level_of_a_training_row_do_not_know_its_judgement() -> None:
    cutter = toy()
    phases, texts = cutter.phases, cutter.facts.texts
    row = int(phases.train[5])
    user = phases.rows.users[row]
    own = phases.train[(phases.rows.users[phases.train] == user) & (phases.train != row)]
    closed = cutter.expectations[0].closed
    levels, items = closed.user_levels(), phases.rows.take(phases.train)
    priors = closed.priors(cutter.facts.attributes.numpy())
    item_levels = closed.item_levels(items.users, items.items, items.values, priors)
    rest = phases.rows.take(own)
    surprise = rest.values - closed.mean - levels[rest.users] - item_levels[rest.items]
    expected = (torch.from_numpy(surprise).float()[:, None] * texts[rest.items]).sum(0) / (TASTE_STRENGTH + len(own))
    tasks, _ = cutter.cut(phases.rows.items[[row]], [np.array([row])], [np.array([], dtype=np.int64)])
    torch.testing.assert_close(tasks.taste[0, 0], expected, atol=1e-5, rtol=1e-4)


def test_a_new_item_s_judgements_reach_no_taste_and_no_level() -> None:
    cutter = toy()
    phases = cutter.phases
    held = phases.parts > 0
    turned = phases.rows.__class__(
        phases.rows.users,
        phases.rows.items,
        np.where(held, 1 - phases.rows.values, phases.rows.values),
        np.where(held, 1 - phases.rows.labels, phases.rows.labels),
    )
    other = TaskCutter(phases.__class__(**{**vars(phases), "rows": turned}), cutter.facts, cutter.num_users)
    for phase, same in (("cold", True), ("warm-c", False)):
        one, two = (each.phase("test", phase)[1] for each in (cutter, other))
        assert torch.equal(one.expected, two.expected) == same
        assert torch.equal(one.taste, two.taste)


def test_no_judgement_ten_thousand_and_all_labels_equal() -> None:
    cutter = toy()
    rows = np.resize(cutter.phases.train, 10_000)
    known, asked = cutter.cut(np.array([3, 4]), [rows, rows[:0]], [rows[:2], rows[:5]])
    assert known.keep.sum(1).tolist() == [10_000, 0]
    assert asked.keep.sum(1).tolist() == [2, 5]
    assert all(bool(torch.isfinite(tasks.expected).all()) for tasks in (known, asked))
    assert known.mean(known.labels).tolist()[1] == 0


def test_shuffled_texts_are_the_same_texts_at_other_items() -> None:
    facts = toy().facts
    shuffled = facts.shuffled(0)
    assert not torch.equal(facts.texts, shuffled.texts)
    torch.testing.assert_close(facts.texts.sum(0), shuffled.texts.sum(0), atol=1e-4, rtol=1e-4)
    assert torch.equal(facts.attributes, shuffled.attributes)
    assert facts.by_text().fields == {}
    assert Facts.of(torch.zeros(2, 0), []).fields == {}
