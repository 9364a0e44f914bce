import numpy as np
import torch

from m6rec.indexes.multivector import MultiVectorConfig, MultiVectorIndex
from m6rec.late_interaction.tokens import TokenReadout
from m6rec.nn.maxsim import maxsim_in_batch
from tests.contracts.backbone_contract import plain_batch, stack

ITEMS = stack(*(plain_batch([7 + n, 20 + n % 5, *([30] * (n % 3))]) for n in range(12)))
USERS = stack(plain_batch([7, 20, 9, 22]), plain_batch([15, 23]), plain_batch([18, 21, 30]))


def test_vectors_are_unit_and_padding_is_zero(tiny_backbone) -> None:
    vectors = TokenReadout(32, width=8)(tiny_backbone("bert"), ITEMS)
    assert vectors.shape == (12, 4, 8)
    torch.testing.assert_close(vectors.norm(dim=-1), ITEMS.keep.float())


def test_the_index_finds_what_maxsim_over_all_items_finds(tiny_backbone) -> None:
    backbone, readout = tiny_backbone("bert"), TokenReadout(32, width=None)
    users, items = readout.encode(backbone, USERS), readout.encode(backbone, ITEMS)
    index = MultiVectorIndex(MultiVectorConfig(near=100), dim=32)
    index.add(np.arange(12), items)
    found = index.search(users, 5)
    asked, had = torch.from_numpy(users), torch.from_numpy(items)
    scores, expected = maxsim_in_batch(asked, had, asked.any(-1), had.any(-1)).topk(5)
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)


def test_training_brings_users_to_their_items(tiny_backbone) -> None:
    backbone, targets = tiny_backbone("bert"), torch.tensor([3, 8, 10])
    torch.manual_seed(0)
    readout = TokenReadout(32, width=16)
    optimizer = torch.optim.Adam(readout.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        loss = readout.loss(readout(backbone, USERS), readout(backbone, ITEMS), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_what_a_user_likes_too_is_no_negative(tiny_backbone) -> None:
    backbone, readout = tiny_backbone("bert"), TokenReadout(32, width=None)
    users, items, targets = readout(backbone, USERS), readout(backbone, ITEMS), torch.tensor([0, 1, 2])
    others = torch.ones(3, 12, dtype=torch.bool)
    others[torch.arange(3), targets] = False
    assert readout.loss(users, items, targets, others).item() == 0.0
    assert readout.loss(users, items, targets).item() > 0
