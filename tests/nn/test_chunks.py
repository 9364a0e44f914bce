"""A batch in chunks is the batch at once: loss, gradients, dropout and all."""

import pytest
import torch
from torch import nn

from m6rec.nn.chunks import in_chunks
from m6rec.nn.losses import contrastive


def towers():
    torch.manual_seed(0)
    return nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Dropout(0.0), nn.Linear(9, 5)) for _ in range(2))


@pytest.mark.parametrize("batch", [8, 1024])
def test_it_equals_the_big_batch(batch):
    users, items = torch.randn(2, batch, 6, generator=torch.Generator().manual_seed(1))
    found = []
    for size in (batch, 3 if batch == 8 else 32):
        user_tower, item_tower = pair = towers()
        loss = contrastive(
            torch.cat(in_chunks(user_tower, users.split(size))),
            torch.cat(in_chunks(item_tower, items.split(size))),
            torch.arange(batch),
        )
        loss.backward()
        found.append((loss, [parameter.grad for parameter in pair.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_the_second_pass_draws_the_same_dropout():
    dropout, rows = nn.Dropout(0.5), torch.ones(40, 10, requires_grad=True)
    out = torch.cat(in_chunks(dropout, rows.split(10)))
    out.sum().backward()
    torch.testing.assert_close(rows.grad, out.detach())


def test_one_chunk_at_a_time_is_held():
    """What is saved for the way back does not grow with the number of chunks."""
    tower = nn.Sequential(nn.Linear(6, 4096), nn.GELU(), nn.Linear(4096, 5))
    held = []
    for size in (64, 8):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            in_chunks(tower, torch.randn(64, 6).split(size))
        held.append(sum(sizes))
    assert held[1] < 0.05 * held[0]
