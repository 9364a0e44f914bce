"""NextItNet, alone and with PeterRec's patches, beside SASRec: MovieLens latest-small, 5-core, all items ranked.

The patched network is the trained one, frozen, with serial patches and a softmax of its own, which starts as the item
table; it learns from the same events. Settings are searched with the first seed, on validation.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from benches.harness import Bench, console
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.backbones.items import item_batch
from m6rec.baselines import BASELINES
from m6rec.baselines.next_item import ItemNetwork, NextItemBaseline
from m6rec.baselines.nextitnet import NextItNet, NextItNetConfig
from m6rec.baselines.tuning import tune
from m6rec.data.histories import Histories
from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.movielens import LatestSmall
from m6rec.evaluation.evaluator import evaluate
from m6rec.evaluation.report import Report
from m6rec.tuners.peterrec import PeterRecConfig, PeterRecTuner
from m6rec.tuners.state import trained_share
from m6rec.workflows.comparison import Compared

METRICS = ("ndcg@10", "recall@10")
TRIALS = 4
QUICK = {"width": 16, "max_epochs": 1}


def run(bench: Bench) -> None:
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    configs: dict[str, Any] = {}
    rows = []
    for seed in range(bench.seeds):
        config = PrepareConfig(seed=seed, k_core=0 if bench.quick else 5)
        events = bench.prepare(source, f"movies-{seed}", config).histories()
        sasrec, nextitnet = (fitted(bench, name, events, configs, seed) for name in ("sasrec", "nextitnet"))
        patched = PatchedNextItNet(nextitnet)
        patched.fit(events.before("train"), events.queries("valid"))
        found = [evaluate(row, events.queries("test"), seed=seed) for row in (sasrec, nextitnet, patched)]
        rows.append(Compared(Report(found, title=f"ml-latest-small, seed {seed}", ours=patched.name), {}))
        console.print(rows[-1].report.table())
        bench.details.setdefault("reports", []).append(rows[-1].report.to_dict())
        bench.details["trained"] = str(trained_share(patched.network.backbone))
    bench.protocol = found[0].protocol
    bench.collect(rows, METRICS)
    bench.ratio("nextitnet_over_sasrec", "nextitnet_ndcg@10", "sasrec_ndcg@10")
    bench.ratio("patched_over_nextitnet", "nextitnet_patched_ndcg@10", "nextitnet_ndcg@10")


def fitted(bench: Bench, name: str, events: Histories, configs: dict[str, Any], seed: int) -> Any:
    """Fit a baseline with the settings that the first seed's search has found; write those where they are not known."""
    train, valid = events.before("train"), events.queries("valid")
    if name not in configs:
        found = tune(name, train, valid, 1 if bench.quick else TRIALS, seed, QUICK if bench.quick else None)
        configs[name] = found.best.config
        bench.details.setdefault("tuning", {})[name] = found.to_dict()
    baseline = BASELINES.load(name)(replace(configs[name], seed=seed))
    baseline.fit(train, valid)
    return baseline


class PatchedNextItNet(NextItemBaseline):
    """A trained NextItNet, frozen, with PeterRec's serial patches and a softmax of its own.

    Args:
        trained: the network.
    """

    name, Config = "nextitnet_patched", NextItNetConfig

    def __init__(self, trained: NextItNet) -> None:
        super().__init__(trained.config)
        self.trained = trained

    def build(self, num_items: int) -> ItemNetwork:
        frozen = copy.deepcopy(self.trained.network.backbone).requires_grad_(False)
        tuner = PeterRecTuner(PeterRecConfig(bottleneck=self.config.width // 8, seed=self.config.seed))
        return PatchedNetwork(tuner.attach(frozen), num_items)


class PatchedNetwork(ItemNetwork):
    """A tuned backbone and its softmax.

    Args:
        backbone: tuned.
        num_items: size of the catalogue.
    """

    def __init__(self, backbone: Backbone, num_items: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.softmax = nn.Parameter(backbone.rows(torch.arange(num_items).unsqueeze(0)).squeeze(0).detach().clone())

    def forward(self, items: Tensor) -> Tensor:
        return self.backbone(item_batch(items))

    def table(self) -> Tensor:
        return self.softmax
