"""Little trees of segments, and a late-interacting backbone over each family."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from m6rec.backbones.base import Backbone
from m6rec.late_interaction.backbone import LateBackbone
from m6rec.late_interaction.config import LateInteractionConfig
from m6rec.text.batch import TokenBatch, collate
from m6rec.text.tokenize import TokenizedLayout

FAMILIES = ["bert", "gpt2", "llama", "qwen3", "t5"]
TRUNK = [(0, [7]), (1, [8, 9, 10]), (1, [11, 12]), (2, [13]), (2, [8, 9, 10])]
BRANCHES = [(2, [[20], [21, 22, 23, 24], [30]]), (1, [[20], [25, 26], [30]]), (2, [[20], [8, 9, 10], [30]])]


def layout(
    trunk: Sequence[tuple[int, list[int]]] = TRUNK, branches: Sequence[tuple[int, list[list[int]]]] = BRANCHES
) -> TokenizedLayout:
    """Return a tree: trunk segments as (block, ids), branches as (block that they hang on, segments)."""
    rows: list[tuple[int, int, int, int, int]] = []
    segment = 0
    for block, ids in trunk:
        rows += [(token, len(rows) + place, block, 0, segment) for place, token in enumerate(ids)]
        segment += 1
    for number, (block, segments) in enumerate(branches, start=1):
        position = sum(row[3] == 0 and row[2] <= block for row in rows)
        for ids in segments:
            rows += [(token, position + place, block, number, segment) for place, token in enumerate(ids)]
            position += len(ids)
            segment += 1
    ids, positions, blocks, owners, numbers = np.array(rows, dtype=np.int32).reshape(-1, 5).T
    return TokenizedLayout(ids=ids, positions=positions, blocks=blocks, branches=owners, segments=numbers)


def batch(*layouts: TokenizedLayout) -> TokenBatch:
    return collate(layouts or [layout()], pad_id=0)


def late(backbone: Backbone, layers: int | None, granularity: Any = "token", vectors: int = 1) -> LateBackbone:
    """Return a late-interacting backbone whose table of segment indices is no longer zero."""
    made = LateBackbone(backbone, LateInteractionConfig(layers=layers, granularity=granularity, vectors=vectors))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        made.segment_embedding.weight.normal_(std=0.5)
    return made.eval()


def depths(model_type: str) -> range:
    """Return every L' of a tiny family: none to all (of T5, its encoder's)."""
    return range(3) if model_type == "t5" else range(4)


CASES = [(family, layers) for family in FAMILIES for layers in depths(family)]
