import pytest
import torch

from m6rec.nn.transformer import CausalTransformer


@pytest.fixture(params=["relative", "absolute"])
def transformer(request) -> CausalTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = CausalTransformer(16, 2, 4, 0.0, 6, request.param)
        for parameter in made.parameters():  # branches start near zero, where a wrong mask would hardly show
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return made.eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))


def test_a_state_depends_on_earlier_slots_alone(transformer, x):
    keep = torch.ones(2, 8, dtype=torch.bool)
    changed = x.clone()
    changed[:, 5] = changed[:, 5].flip(-1)
    before, after = transformer(x, keep), transformer(changed, keep)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-4


def test_padding_on_either_side_changes_nothing(transformer, x):
    alone = transformer(x[:, :5], torch.ones(2, 5, dtype=torch.bool))
    right = torch.arange(8) < 5
    torch.testing.assert_close(transformer(x, right.expand(2, 8))[:, :5], alone)
    shifted = torch.cat([x[:, 5:], x[:, :5]], dim=1)
    left = torch.arange(8) >= 3
    torch.testing.assert_close(transformer(shifted, left.expand(2, 8))[:, 3:], alone)


def test_order_matters(transformer, x):
    keep = torch.ones(2, 8, dtype=torch.bool)
    swapped = x[:, [1, 0, *range(2, 8)]]
    assert (transformer(x, keep)[:, -1] - transformer(swapped, keep)[:, -1]).abs().max() > 1e-4


def test_lengths_beyond_the_known_positions_and_empty_rows_are_finite(transformer, x):
    long = x.repeat(1, 3, 1)
    assert transformer(long, torch.ones(2, 24, dtype=torch.bool)).isfinite().all()
    empty = torch.zeros(2, 8, dtype=torch.bool)
    out = transformer(x, empty)
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in transformer.parameters())


def test_dropout_acts_in_training_alone(x):
    transformer = CausalTransformer(16, 1, 2, 0.5, 8)
    keep = torch.ones(2, 8, dtype=torch.bool)
    assert not torch.equal(transformer(x, keep), transformer(x, keep))
    transformer.eval()
    assert torch.equal(transformer(x, keep), transformer(x, keep))
