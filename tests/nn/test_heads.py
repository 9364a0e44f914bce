"""A head over numbers: what it learns alone, and what it leaves behind."""

import torch

from m6rec.nn.heads import NumberHead


def fitted(seed: int) -> NumberHead:
    torch.manual_seed(0)
    head, numbers = NumberHead(2), torch.randn(2000, 2)
    head.fit(numbers, (numbers[:, 0] > 0).float(), seed)
    return head


def test_it_learns_what_the_numbers_say():
    numbers = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    yes, no = torch.sigmoid(fitted(0)(numbers))[:, 0].tolist()
    assert yes > 0.9
    assert no < 0.1


def test_the_same_seed_gives_the_same_weights():
    first, second = fitted(3).state_dict(), fitted(3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_gradient_is_left_for_the_next_trainer():
    assert all(parameter.grad is None for parameter in fitted(0).parameters())
