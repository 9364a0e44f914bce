import pytest
import torch

from m6rec.coldstart.events import first
from m6rec.coldstart.meta import TwoStage, TwoStageConfig
from m6rec.coldstart.online import Online, OnlineConfig, UserParts
from tests.coldstart.test_meta import model
from tests.coldstart.toy import events, rows_of, table


def online(**settings):
    return Online(model(), table(), OnlineConfig(**settings))


def test_users_at_once_are_each_alone():
    stage, arrived = online(), events(6, 4)
    together = stage.observe(stage.newcomers(torch.zeros(6, 0)), arrived)
    for row in range(6):
        alone = stage.observe(stage.newcomers(torch.zeros(1, 0)), rows_of(arrived, slice(row, row + 1)))
        assert torch.allclose(together.numbers[row], alone.numbers[0], atol=1e-6)
    assert together.events.tolist() == [4.0] * 6


def test_events_in_two_calls_are_events_in_one():
    stage, arrived = online(), events(3, 5)
    newcomers = stage.newcomers(torch.zeros(3, 0))
    at_once = stage.observe(newcomers, arrived)
    rest = type(arrived)(**{name: value[:, 2:] for name, value in vars(arrived).items()})
    in_parts = stage.observe(stage.observe(newcomers, first(arrived, 2)), rest)
    assert torch.allclose(at_once.numbers, in_parts.numbers, atol=1e-6)


def test_the_level_is_exactly_the_shrunk_mean():
    stage = Online(TwoStage(TwoStageConfig(), table().width, 0, torch.ones(2)), table(), OnlineConfig(pull=0.0))
    arrived = events(2, 7)
    # Nothing but the level can move.
    still = type(arrived)(**{**vars(arrived), "taste": torch.zeros_like(arrived.taste)})
    found = stage.observe(stage.newcomers(torch.zeros(2, 0)), still)
    assert torch.allclose(found.numbers[:, 0], (arrived.values - arrived.base).sum(1) / (7 + 5), atol=1e-5)


def test_a_later_event_moves_less_and_nobody_else():
    stage, arrived = online(), events(2, 1)
    new = stage.newcomers(torch.zeros(2, 0))
    old = UserParts(new.numbers, new.prior, torch.tensor([0.0, 50.0]))
    moved = (stage.observe(old, arrived).numbers - old.numbers).norm(dim=1)
    alike = (stage.observe(new, arrived).numbers - new.numbers).norm(dim=1)
    assert moved[0] == alike[0]
    assert moved[1] < 0.5 * alike[1]
    padded = type(arrived)(**{**vars(arrived), "keep": torch.tensor([[True], [False]])})
    kept = stage.observe(old, padded)
    assert torch.equal(kept.numbers[1], old.numbers[1])
    assert kept.events.tolist() == [1.0, 50.0]


def test_the_pull_brings_back_to_the_prior():
    stage, arrived = online(pull=1.0), events(1, 1)
    silent = type(arrived)(**{**vars(arrived), "values": arrived.base, "taste": torch.zeros_like(arrived.taste)})
    start = stage.newcomers(torch.zeros(1, 0))
    far = UserParts(start.prior + 1.0, start.prior, torch.zeros(1))
    kept = Online(model(), table(), OnlineConfig(pull=0.0)).observe(far, silent).numbers
    assert (stage.observe(far, silent).numbers - start.prior).norm() < (kept - start.prior).norm()


def test_a_refresh_moves_the_prior_to_come_and_nobody_who_is_here():
    stage = online(refresh=0.5)
    parts = stage.observe(stage.newcomers(torch.zeros(4, 0)), events(4, 20))
    before, kept = stage.model.start.clone(), stage.predict(parts, events(4, 3, seed=5))
    stage.refresh(parts)
    assert not torch.equal(stage.model.start, before)
    assert torch.equal(stage.predict(parts, events(4, 3, seed=5)), kept)
    towards = parts.numbers.mean(0) - before
    assert torch.cosine_similarity(stage.model.start - before, towards, dim=0) > 0.99
    start = stage.model.start.clone()
    stage.refresh(stage.newcomers(torch.zeros(4, 0)))  # who have done nothing
    assert torch.equal(stage.model.start, start)


def test_impossible_settings():
    with pytest.raises(ValueError, match="expected 0 to 1"):
        OnlineConfig(pull=2.0)
