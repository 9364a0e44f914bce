"""The hash of weights tells apart what differs, and takes a number alone."""

import torch

from m6rec.nn.digest import digest_of


def test_every_difference_shows():
    weights = torch.arange(6.0)
    variants = [weights, weights.view(2, 3), -weights, weights.double(), torch.tensor(1.0), torch.tensor(2.0)]
    named = [[("w", variant)] for variant in variants] + [[("v", weights)]]
    assert len({digest_of(each) for each in named}) == len(named)


def test_how_it_lies_in_memory_does_not_matter():
    weights = torch.arange(6.0).view(2, 3)
    assert digest_of([("w", weights.T)]) == digest_of([("w", weights.T.contiguous())])
