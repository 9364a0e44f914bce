"""Teaching losses: against the textbook's, worked by hand."""

import torch
from torch.nn import functional as F

from m6rec.nn.teaching import listwise_cross_entropy, listwise_kl, margin_mse

KEEP = torch.tensor([[True, True, False, True], [True, True, True, True], [True, False, False, False]])


def scores(seed):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) * 3


def test_kl_over_what_is_kept():
    student, teacher = scores(0), scores(1)
    expected = sum(
        F.kl_div((s[k] / 2).log_softmax(0), (t[k] / 2).softmax(0), reduction="sum") * 4
        for s, t, k in zip(student[:2], teacher[:2], KEEP[:2], strict=True)
    )
    torch.testing.assert_close(listwise_kl(student, teacher, KEEP, temperature=2.0), expected / 2)


def test_margins_over_what_is_kept():
    student, teacher = scores(0), scores(1)
    gaps = [
        (student[row, 0] - student[row, place] - teacher[row, 0] + teacher[row, place]) ** 2
        for row, place in ((0, 1), (0, 3), (1, 1), (1, 2), (1, 3))
    ]
    torch.testing.assert_close(margin_mse(student, teacher, KEEP), torch.stack(gaps).mean())


def test_cross_entropy_of_the_first():
    given = scores(0)
    expected = [F.cross_entropy(given[row][KEEP[row]], torch.tensor(0)) for row in (0, 1)]
    torch.testing.assert_close(listwise_cross_entropy(given, KEEP), torch.stack(expected).mean())


def test_teachers_are_not_trained_and_empty_lists_are_silent():
    for loss in (listwise_kl, margin_mse):
        student, teacher = scores(0).requires_grad_(), scores(1).requires_grad_()
        loss(student, teacher, KEEP).backward()
        assert teacher.grad is None
        assert student.grad[2].abs().sum() == 0
        assert student.grad[0, 2] == 0
        assert torch.isfinite(student.grad).all()
        assert loss(scores(0), scores(1), torch.zeros(3, 4, dtype=torch.bool)) == 0
