"""Learning over items: it learns, keeps what validation likes, and never looks at what is tested."""

import copy

import numpy as np
import pytest
import torch

from m6rec.coldstart.baselines.closed import WeighedClosedForms
from m6rec.coldstart.baselines.cvar import CVAR
from m6rec.coldstart.baselines.dcn import DCN
from m6rec.coldstart.baselines.deepfm import DeepFM
from m6rec.coldstart.baselines.meta_embedding import MetaEmbedding
from m6rec.coldstart.item_graph import ItemGraph, ItemGraphConfig
from m6rec.coldstart.item_net import adapt
from m6rec.coldstart.item_phases import PHASES
from m6rec.coldstart.item_tasks import TaskCutter
from m6rec.coldstart.item_training import STEPS, LearnConfig, WarmUp, draws, from_rows, from_tasks, learn, predict
from m6rec.errors import ConfigError, DataError
from tests.coldstart.item_toy import USERS, toy

CONFIG = LearnConfig(num_epochs=2, num_items=8, num_queries=8, lr=0.02)
NETS = {
    "deepfm": lambda facts: DeepFM(facts, USERS, 8),
    "dcn": lambda facts: DCN(facts, USERS, 8),
    "meta-embedding": lambda facts: MetaEmbedding(facts, USERS, 8),
    "cvar": lambda facts: CVAR(facts, USERS, 8, code=4),
    "closed-forms": lambda facts: WeighedClosedForms(facts, USERS),
    "graph": lambda facts: ItemGraph(facts, USERS, ItemGraphConfig(width=8), with_closed_form=True),
}


def made(name: str, cutter: TaskCutter):
    torch.manual_seed(0)
    return NETS[name](cutter.facts)


@pytest.mark.parametrize("name", NETS)
def test_every_net_starts_predicts_adapts_and_trains(name: str) -> None:
    cutter = toy()
    net, (known, asked) = made(name, cutter), next(draws(cutter, CONFIG))
    for own in (net.start(asked.items), net.learnt(asked.items)):
        assert net(asked, own).shape == asked.users.shape
        assert all(len(value) == len(asked.items) for value in own.values())
    own = adapt(net, net.start(known.items), known, 2, 0.1)
    assert all(bool(torch.isfinite(value).all()) for value in own.values())
    (from_rows(net, CONFIG, dropped=0.5)(known, asked) + from_tasks(net, CONFIG)(known, asked)).backward()
    silent = {n.partition(".")[0] for n, p in net.named_parameters() if p.grad is None}
    assert silent == ({"encoder"} if name == "cvar" else set())  # which its own stage trains


@pytest.mark.parametrize("name", ["meta-embedding", "cvar"])
def test_the_second_stage_trains_what_makes_rows_and_nothing_else(name: str) -> None:
    cutter = toy()
    net = made(name, cutter)
    with torch.no_grad():
        net.rows.weight.normal_()
    before = copy.deepcopy(net.state_dict())
    step = net.step if isinstance(net, CVAR) else from_tasks(net, CONFIG)
    own = {id(parameter) for parameter in net.made()}
    optimizer = torch.optim.SGD(net.made(), lr=0.5)
    step(*next(draws(cutter, CONFIG))).backward()
    optimizer.step()
    for key, parameter in net.named_parameters():
        assert torch.equal(parameter, before[key]) == (id(parameter) not in own), key


def test_it_learns_a_planted_taste_from_texts_that_shuffled_ones_do_not_tell() -> None:
    cutter, found = toy(rows=3000), []
    config = LearnConfig(num_epochs=3, num_items=16, num_queries=8, lr=0.03)
    for facts in (cutter.facts.by_text(), cutter.facts.by_text().shuffled(3)):
        own = TaskCutter(cutter.phases, facts, USERS)
        torch.manual_seed(0)
        net = ItemGraph(facts, USERS, ItemGraphConfig(width=8), with_closed_form=True)
        figures = learn(net, from_tasks(net, config), net.parameters(), own, config)
        assert len(figures) == 1 + config.num_epochs
        scores = predict(net, own, "test", "cold", 0, 0.1)
        found.append(cutter.phases.judge("test", scores)["within_item_auc"])
    closed = cutter.phases.judge("test", cutter.in_order("test", *_expected(cutter)))["within_item_auc"]
    assert found[0] > 0.7 > max(found[1], closed) + 0.05


def _expected(cutter: TaskCutter):
    _, asked = cutter.phase("test", "cold")
    return asked.expected[..., 1], asked


def test_the_epoch_that_validation_likes_is_kept() -> None:
    cutter = toy()
    net = made("deepfm", cutter)
    learn(net, from_rows(net, CONFIG), net.parameters(), cutter, CONFIG)
    good, ruinous = copy.deepcopy(net.state_dict()), LearnConfig(num_epochs=1, num_items=8, lr=100.0)
    before, after = learn(net, from_rows(net, ruinous), net.parameters(), cutter, ruinous)
    assert after < before
    assert all(torch.equal(value, good[name]) for name, value in net.state_dict().items())


def test_what_is_tested_touches_neither_learning_nor_the_choice_of_steps() -> None:
    cutter, kept = toy(), []
    test = cutter.phases.parts == 2
    for labels in (cutter.phases.rows.labels, np.where(test, 1 - cutter.phases.rows.labels, cutter.phases.rows.labels)):
        rows = cutter.phases.rows.__class__(cutter.phases.rows.users, cutter.phases.rows.items, labels, labels)
        own = TaskCutter(cutter.phases.__class__(**{**vars(cutter.phases), "rows": rows}), cutter.facts, USERS)
        net = made("graph", own)
        learn(net, from_tasks(net, CONFIG), net.parameters(), own, CONFIG)
        kept.append((net.state_dict(), WarmUp.chosen(net, own, 0.1).steps))
    assert kept[0][1] == kept[1][1]
    assert all(torch.equal(value, kept[1][0][name]) for name, value in kept[0][0].items())


def test_warm_up_steps_are_chosen_and_cold_items_have_none() -> None:
    cutter = toy()
    warm = WarmUp.chosen(made("deepfm", cutter), cutter, 0.1)
    assert warm.steps["cold"] == 0
    assert set(warm.steps) == set(PHASES)
    assert set(warm.steps.values()) <= set(STEPS)
    before, asked = predict(warm.net, cutter, "test", "warm-c", 0, 0.1), cutter.phases.queries("test")
    assert before.shape == asked.shape
    assert not np.allclose(before, predict(warm.net, cutter, "test", "warm-c", 3, 0.5))


def test_draws_repeat_by_their_seed_and_ask_nothing_that_is_known() -> None:
    cutter = toy()
    first, again = (next(draws(cutter, CONFIG)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(value, getattr(two, name)) for name, value in vars(one).items())
    known, asked = first
    assert set(known.items.tolist()) <= set(cutter.phases.items["train"].tolist())
    assert (known.keep.sum(1) <= 6).all()
    assert (asked.keep.sum(1) >= 1).all()


def test_says_what_cannot_be_learnt() -> None:
    with pytest.raises(ConfigError, match="num_epochs 0"):
        LearnConfig(num_epochs=0)
    cutter = toy()
    rows = cutter.phases.rows.take(np.unique(cutter.phases.rows.items, return_index=True)[1])
    alone = cutter.phases.__class__(
        rows, 2, cutter.phases.items, np.zeros(len(rows), int), np.zeros(len(rows), np.int8)
    )
    with pytest.raises(DataError, match="two judgements to learn from"):
        next(draws(TaskCutter(alone, cutter.facts, USERS), CONFIG))
