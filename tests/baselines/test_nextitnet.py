import torch

from m6rec.baselines.nextitnet import NextItNet, NextItNetConfig
from tests.contracts.baseline_contract import BaselineContract, ring_log

SMALL = {"width": 16, "dilations": (1,), "dropout": 0.1, "max_length": 4, "learning_rate": 0.02, "batch_tokens": 64}
SMALL = {**SMALL, "max_epochs": 12}


class TestNextItNet(BaselineContract):
    name, learns, settings = "nextitnet", "order", SMALL


def test_all_of_the_backbone_is_trained_but_the_control_tokens():
    log = ring_log(80)
    before, after = (NextItNet(NextItNetConfig(**{**SMALL, "max_epochs": epochs})) for epochs in (0, 1))
    for baseline in (before, after):
        baseline.fit(log.before("train"))
    start, end = (baseline.network.backbone.state_dict() for baseline in (before, after))
    assert {name for name in start if torch.equal(start[name], end[name])} == {"control"}
