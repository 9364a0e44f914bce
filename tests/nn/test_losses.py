import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from m6rec.nn.losses import catalogue_cross_entropy, contrastive


def problem(positions, items, dim=6, seed=0, share=0.3):
    """Return users, items, targets and (position, item) pairs that are excluded, none of them a target."""
    rng = torch.Generator().manual_seed(seed)
    users = torch.randn(positions, dim, generator=rng) * 4
    vectors = torch.randn(items, dim, generator=rng)
    targets = torch.randint(items, (positions,), generator=rng)
    excluded = torch.rand(positions, items, generator=rng) < share
    excluded[torch.arange(positions), targets] = False
    return users, vectors, targets, excluded


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def by_torch(users, items, targets, excluded):
    scores = users @ items.T
    return F.cross_entropy(scores if excluded is None else scores.masked_fill(excluded, -torch.inf), targets)


@settings(max_examples=25, deadline=None)
@given(
    positions=st.integers(1, 23),
    items=st.integers(1, 17),
    chunk=st.integers(1, 30),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_catalogue_cross_entropy_is_torchs(positions, items, chunk, share, seed):
    users, vectors, targets, excluded = problem(positions, items, seed=seed, share=share)
    users.requires_grad_(), vectors.requires_grad_()
    expected = by_torch(users, vectors, targets, excluded)
    rows, columns = excluded.nonzero(as_tuple=True)
    found = catalogue_cross_entropy(users, vectors, targets, (rows, columns), chunk)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(3 * found, users, vectors), gradients(3 * expected, users, vectors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_catalogue_cross_entropy_without_exclusions():
    users, vectors, targets, _ = problem(9, 7)
    expected = by_torch(users, vectors, targets, None)
    torch.testing.assert_close(catalogue_cross_entropy(users, vectors, targets), expected)


def test_catalogue_cross_entropy_passes_gradients_on_to_what_made_the_vectors():
    users, vectors, targets, excluded = problem(9, 7)
    weight = torch.randn(6, 6, requires_grad=True)
    pairs = excluded.nonzero(as_tuple=True)
    (found,) = gradients(catalogue_cross_entropy(users @ weight, vectors @ weight, targets, pairs, 4), weight)
    (expected,) = gradients(by_torch(users @ weight, vectors @ weight, targets, excluded), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_catalogue_cross_entropy_stands_large_scores():
    users, items = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.eye(2)
    assert catalogue_cross_entropy(users, items, torch.tensor([0, 1])).item() == 0
    assert catalogue_cross_entropy(users, items, torch.tensor([1, 0])).item() == 1000


def test_catalogue_cross_entropy_in_bf16_stays_near():
    users, vectors, targets, excluded = problem(40, 50)
    users, vectors = F.normalize(users).requires_grad_(), F.normalize(vectors).requires_grad_()
    pairs = excluded.nonzero(as_tuple=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = catalogue_cross_entropy(users / 0.07, vectors, targets, pairs, 7)
    expected = by_torch(users / 0.07, vectors, targets, excluded)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    ours, theirs = gradients(found, users)[0], gradients(expected, users)[0]
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.995


def test_contrastive_is_cross_entropy_over_the_columns_that_are_left():
    users, vectors, targets, excluded = problem(8, 6)
    expected = torch.stack(
        [
            F.cross_entropy((user @ vectors.T)[~gone][None], (~gone)[:target].sum()[None])
            for user, target, gone in zip(users, targets, excluded, strict=True)
        ]
    ).mean()
    torch.testing.assert_close(contrastive(users, vectors, targets, excluded), expected)


def test_contrastive_never_excludes_the_target():
    users, vectors, targets, excluded = problem(8, 6)
    everything = torch.ones_like(excluded)
    assert contrastive(users, vectors, targets, everything).item() == 0
    with_target = excluded.clone()
    with_target[torch.arange(8), targets] = True
    assert contrastive(users, vectors, targets, with_target) == contrastive(users, vectors, targets, excluded)


def test_log_q_takes_the_sampling_out():
    """An item that stands in two columns, each corrected for that, weighs what it weighs in one."""
    users, vectors, _, _ = problem(5, 4)
    targets = torch.tensor([1, 2, 3, 1, 2])
    doubled, log_q = torch.cat([vectors, vectors[:1]]), torch.tensor([2.0, 1.0, 1.0, 1.0, 2.0]).log()
    corrected = contrastive(users, doubled, targets, None, log_q)
    torch.testing.assert_close(corrected, contrastive(users, vectors, targets))
    assert contrastive(users, doubled, targets) > corrected
