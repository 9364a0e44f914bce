import pytest
import torch
from torch.func import functional_call

from m6rec.coldstart.events import ColdBatch, first
from m6rec.coldstart.meta import TwoStage, TwoStageConfig, descend
from tests.coldstart.toy import batch, events, rows_of, table

PULL = torch.tensor([2.0, 3.0])


def model(seed=0, **settings):
    """Return a small model whose every part says something."""
    torch.manual_seed(seed)
    made = TwoStage(TwoStageConfig(hidden=8, **settings), table().width, 0, PULL)
    for name, weight in made.named_parameters():
        if not name.startswith("log"):
            weight.data += 0.1 * torch.randn_like(weight)
    return made.eval()


class TestDescend:
    def test_by_hand(self):
        found = descend(lambda x: ((x - 3) ** 2).sum(1), torch.zeros(1, 1), torch.tensor([0.25]), steps=2)
        assert found.item() == pytest.approx(1.5 + 0.75)

    def test_the_start_is_left_as_it_was(self):
        start = torch.zeros(2, 1, requires_grad=True)
        with torch.no_grad():
            found = descend(lambda x: ((x - 3) ** 2).sum(1), start, torch.tensor([0.5]), steps=1)
        assert start.tolist() == [[0.0], [0.0]]
        assert found.tolist() == [[3.0], [3.0]]
        assert not found.requires_grad

    @pytest.mark.parametrize("second_order", [True, False])
    def test_the_outer_gradient_against_finite_differences(self, second_order):
        """Second order is the true derivative of query loss after inner steps; first order is not."""
        draw = torch.Generator().manual_seed(0)
        x, y, x2, y2 = (torch.randn(6, generator=draw, dtype=torch.float64) for _ in range(4))
        rate = torch.tensor([0.3], dtype=torch.float64)

        def outer(weight, create):
            def inner(numbers):
                return ((torch.tanh(weight * x) * numbers - y) ** 2).mean(1)

            start = torch.full((1, 1), 0.2, dtype=torch.float64, requires_grad=True)
            adapted = descend(inner, start, rate, steps=3, second_order=create)
            return ((torch.tanh(weight * x2) * adapted - y2) ** 2).mean()

        weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(outer(weight, second_order), weight)
        step = 1e-6
        with torch.enable_grad():
            true = (outer(weight + step, False) - outer(weight - step, False)).item() / (2 * step)
        assert (slope.item() == pytest.approx(true, rel=1e-6)) is second_order


@pytest.mark.parametrize("part", ["vector", "adapter"])
class TestTwoStage:
    def test_many_users_at_once_are_each_alone(self, part):
        made, items, users = model(part=part), table(), batch(5)
        together = made(items, users)
        alone = [made(items, rows_of(users, slice(row, row + 1))) for row in range(5)]
        assert torch.allclose(together, torch.cat(alone), atol=1e-6)

    def test_no_events_stay_at_the_prior(self, part):
        made, items, users = model(part=part), table(), batch(3)
        prior = made.prior(users.profiles)
        assert torch.equal(made.adapt(items, first(users.support, 0), prior), prior)

    def test_a_users_numbers_leave_no_trace_in_the_next(self, part):
        made, items, users = model(part=part), table(), batch(3)
        kept = {name: value.clone() for name, value in made.state_dict().items()}
        before = made(items, users)
        with torch.no_grad():
            made.adapt(items, events(40, 9, seed=9), made.prior(torch.zeros(40, 0)))
        assert all(torch.equal(value, kept[name]) for name, value in made.state_dict().items())
        assert torch.equal(made(items, users), before)

    @pytest.mark.parametrize("second_order", [True, False])
    def test_the_gradient_reaches_everything_that_is_shared(self, part, second_order):
        made = model(part=part, second_order=second_order, dropout=0.0).train()
        users = batch(4)
        (made(table(), users) - users.query.values).square().mean().backward()
        unmoved = {name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.any()}
        assert unmoved == {"profile"}  # nothing is known of these users

    def test_ten_thousand_events_are_no_more_than_events(self, part):
        made, items = model(part=part), table()
        many = events(1, 10_000, seed=3)
        found = made(items, ColdBatch(many, events(1, 5, seed=4), torch.zeros(1, 0)))
        assert torch.isfinite(found).all()
        assert found.abs().max() < 50

    def test_padding_is_no_event(self, part):
        made, items, users = model(part=part), table(), batch(2, support=6)
        keep = users.support.keep.clone()
        keep[:, 4:] = False
        padded = ColdBatch(type(users.support)(**{**vars(users.support), "keep": keep}), users.query, users.profiles)
        cut = ColdBatch(first(users.support, 4), users.query, users.profiles)
        assert torch.allclose(made(items, padded), made(items, cut), atol=1e-6)


def test_untrained_it_is_the_level_and_the_ridge_in_closed_form():
    """One direction and enough steps: the inner loop ends at the exact posterior mean."""
    torch.manual_seed(0)
    made = TwoStage(TwoStageConfig(steps=300), table().width, 0, torch.tensor([3.0])).eval()
    users = batch(2, support=6, dim=1)
    numbers = made.adapt(table(), users.support, made.prior(users.profiles))
    inputs = torch.stack([torch.ones(2, 6), users.support.taste[..., 0]], dim=-1)
    left = users.support.values - users.support.base
    gram = inputs.mT @ inputs + torch.diag(torch.tensor([5.0, 3.0]))
    assert torch.allclose(numbers, torch.linalg.solve(gram, (inputs.mT @ left[..., None])[..., 0]), atol=1e-4)


def test_a_shared_taste_is_learnt_and_then_found_in_few_events():
    """Users like one hidden direction of the items' features or its opposite; nothing else tells them apart."""
    items = table(num_items=200, columns=2)
    hidden = items.features(torch.arange(200))[:, 0]
    torch.manual_seed(0)
    made = TwoStage(TwoStageConfig(hidden=8, dropout=0.0), items.width, 0, torch.tensor([1.0]))
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-2)
    made.directions.weight.data.normal_(std=0.1)

    def users(seed):
        drawn = batch(32, support=5, query=10, num_items=200, dim=1, seed=seed)
        sign = torch.sign(drawn.support.values[:, :1])

        def liked(part):
            zero = torch.zeros_like(part.values)
            values = sign * hidden[part.places]
            return type(part)(**{**vars(part), "values": values, "base": zero, "taste": torch.zeros_like(part.taste)})

        return ColdBatch(liked(drawn.support), liked(drawn.query), drawn.profiles)

    def error(drawn):
        return (made(items, drawn) - drawn.query.values).square().mean()

    untrained = error(users(0)).item()
    for seed in range(1, 120):
        optimizer.zero_grad()
        error(users(2 * seed)).backward()
        optimizer.step()
    assert error(users(1001)).item() < 0.3 * untrained


def test_thousands_of_users_in_one_batch_through_the_functional_form():
    made, items, users = model(), table(), batch(2000, support=3, query=2)
    plain = made(items, users)
    functional = functional_call(made, dict(made.named_parameters()), (items, users))
    assert torch.equal(plain, functional)
