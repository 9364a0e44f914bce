"""Kernels: what they start as, what they draw, and that every row meets its own scene's."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from m6rec.nn.kernels import Gaussian, KernelBank, SceneLinear

SCENES, WIDTH, BOTTLENECK = 3, 8, 4


@pytest.fixture
def bank() -> KernelBank:
    """Return a bank that has learnt something: every weight differs from its start and from scene to scene."""
    torch.manual_seed(0)
    bank = KernelBank(SCENES, WIDTH, BOTTLENECK)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return bank.eval()


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def test_divergence_is_that_of_the_library() -> None:
    codes = Gaussian(torch.randn(2, 3, BOTTLENECK), torch.randn(2, 3, BOTTLENECK))
    library = kl_divergence(Normal(codes.mean, (codes.log_variance / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(codes.divergence(), library)


def test_samples_have_their_mean_and_variance() -> None:
    torch.manual_seed(0)
    codes = Gaussian(torch.full((40_000, 1, 1), 2.0), torch.full((40_000, 1, 1), -1.0))
    drawn = codes.sample()
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.02)
    assert drawn.var().item() == pytest.approx(0.3679, abs=0.02)


@pytest.mark.parametrize("training", [False, True])
def test_a_new_bank_changes_nothing(states: torch.Tensor, training: bool) -> None:
    changed, _ = KernelBank(SCENES, WIDTH, BOTTLENECK).train(training)(states, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(changed, states)


def test_every_row_meets_the_kernel_of_its_scene(bank: KernelBank, states: torch.Tensor) -> None:
    scenes = torch.tensor([2, 0, 2, 1])
    together, codes = bank(states, scenes)
    for row, scene in enumerate(scenes):
        alone, code = bank(states[row : row + 1], scene.view(1))
        torch.testing.assert_close(together[row], alone[0])
        torch.testing.assert_close(codes.mean[row], code.mean[0])
    other, _ = bank(states, torch.tensor([0, 0, 2, 1]))
    assert not torch.allclose(other[0], together[0])
    torch.testing.assert_close(other[1:], together[1:])


def test_one_scene_stands_for_all_rows(bank: KernelBank, states: torch.Tensor) -> None:
    torch.testing.assert_close(bank(states, torch.tensor([1]))[0], bank(states, torch.tensor([1, 1, 1, 1]))[0])


def test_a_scene_learns_from_its_own_rows_alone(bank: KernelBank, states: torch.Tensor) -> None:
    bank.train()(states, torch.tensor([2, 0, 2, 0]))[0].square().sum().backward()
    for parameter in bank.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].abs().max() == 0
        assert parameter.grad[0].abs().max() > 0


def test_draws_in_training_and_means_otherwise(bank: KernelBank, states: torch.Tensor) -> None:
    scenes = torch.tensor([0])
    assert torch.equal(bank(states, scenes)[0], bank(states, scenes)[0])
    bank.train()
    assert not torch.allclose(bank(states, scenes)[0], bank(states, scenes)[0])


def test_the_scale_of_the_states_does_not_reach_the_codes(bank: KernelBank, states: torch.Tensor) -> None:
    small, large = (bank.encode(factor * states, torch.tensor([0])) for factor in (1, 50))
    torch.testing.assert_close(small.mean, large.mean, atol=1e-4, rtol=1e-4)


def test_states_of_half_precision_stay_so(bank: KernelBank, states: torch.Tensor) -> None:
    changed, codes = bank(states.bfloat16(), torch.tensor([0]))
    assert changed.dtype == torch.bfloat16
    assert codes.divergence().dtype == torch.float32


def test_a_linear_map_a_scene() -> None:
    layer, states = SceneLinear(2, 3, 5), torch.randn(2, 4, 3)
    found = layer(states, torch.tensor([1, 0]))
    torch.testing.assert_close(found[0], states[0] @ layer.weight[1] + layer.bias[1])
    torch.testing.assert_close(found[1], states[1] @ layer.weight[0] + layer.bias[0])
