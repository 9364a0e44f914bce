import torch

from m6rec.nn.maxsim import maxsim, maxsim_in_batch


def made(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_equals_the_sum_of_the_best_by_hand() -> None:
    queries, documents = made(2, 3, 4), made(2, 5, 6, 4)
    ask, have = torch.tensor([[1, 1, 1], [1, 0, 0]]) > 0, made(2, 5, 6) > -0.5
    found = maxsim(queries, documents, ask, have)
    for q in range(2):
        for d in range(5):
            kept = documents[q, d][have[q, d]]
            expected = sum((kept @ token).max() for token in queries[q][ask[q]])
            torch.testing.assert_close(found[q, d], expected)


def test_padding_changes_nothing_and_what_is_empty_is_never_found() -> None:
    queries, documents = made(1, 2, 4), made(1, 3, 2, 4)
    ask, have = torch.ones(1, 2) > 0, torch.ones(1, 3, 2) > 0
    longer = torch.cat([documents, 100 * made(1, 3, 3, 4)], dim=2)
    hidden = torch.cat([have, torch.zeros(1, 3, 3) > 0], dim=2)
    torch.testing.assert_close(maxsim(queries, longer, ask, hidden), maxsim(queries, documents, ask, have))
    assert maxsim(queries, documents, ask, have & False).isneginf().all()


def test_in_batch_is_every_query_with_every_document() -> None:
    queries, documents = made(3, 2, 4).requires_grad_(), made(5, 6, 4)
    ask, have = torch.ones(3, 2) > 0, torch.ones(5, 6) > 0
    found = maxsim_in_batch(queries, documents, ask, have)
    one = maxsim(queries[1:2], documents[4:5][None], ask[1:2], have[4:5][None])
    torch.testing.assert_close(found[1:2, 4:5], one)
    found.sum().backward()
    assert queries.grad.abs().sum() > 0
