"""A late-interacting ranking run as two graphs: what reads a segment alone, and what reads them together."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from m6rec.compressors.exits import GivenStates
from m6rec.compressors.export import Example, Part
from m6rec.edge.folder import LOWER_FILE, UPPER_FILE
from m6rec.edge.graphs import branch_ends
from m6rec.edge.segments import Inputs, SplitFeed
from m6rec.errors import RunError
from m6rec.late_interaction.backbone import LateBackbone
from m6rec.late_interaction.cache import SegmentCache, States
from m6rec.tasks.ranking.data import RankingBatch
from m6rec.tasks.ranking.task import Ranking
from m6rec.text.batch import TokenBatch


class LowerGraph(nn.Module):
    """Segments, each alone, through the lower layers.

    Args:
        backbone: in evaluation mode.

    Raises:
        RunError: its segments hand on something else than their tokens' states, or end in a decoder.
    """

    def __init__(self, backbone: LateBackbone) -> None:
        super().__init__()
        if backbone.config.granularity != "token" or backbone.family == "seq2seq":
            raise RunError(
                f"got late interaction of {backbone.config.granularity} granularity over the {backbone.family} family, "
                "expected token granularity over an encoder or a causal model: only these are exported as two graphs"
            )
        self.backbone = backbone

    def forward(self, ids: Tensor, keep: Tensor, targets: Tensor) -> Tensor:
        """Return ``[segments, width, hidden]`` states; ``targets`` says which segments are read forward."""
        zero = torch.zeros_like(ids)
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        batch = TokenBatch(ids=ids, keep=keep, positions=positions, blocks=zero, branches=zero + targets[:, None])
        mask, hidden = self.backbone.mask(batch), self.backbone.embed(ids, positions)
        for index in range(self.backbone.num_alone):
            hidden = self.backbone.layer(index, hidden, mask, positions)
        return hidden


class UpperGraph(nn.Module):
    """Lower states of one tree's segments to logits.

    Args:
        backbone: in evaluation mode.
        task: the ranking task on it.
        lead: how many virtual tokens stand before the text.
    """

    def __init__(self, backbone: LateBackbone, task: Ranking, lead: int) -> None:
        super().__init__()
        self.backbone, self.task, self.lead = backbone, task, lead

    def forward(
        self,
        states: Tensor,
        path: Tensor,
        positions: Tensor,
        blocks: Tensor,
        branches: Tensor,
        columns: Tensor,
        numbers: Tensor,
    ) -> Tensor:
        """Return ``[candidates, 2]`` logits of no and yes."""
        keep = torch.ones_like(path, dtype=torch.bool)
        tokens = TokenBatch(ids=path, keep=keep, positions=positions, blocks=blocks, branches=branches)
        mask, hidden = self.backbone.mask(tokens), states + self.backbone.segment_embedding(path)
        for index in range(self.backbone.num_alone, self.backbone.num_layers):
            hidden = self.backbone.layer(index, hidden, mask, positions)
        given = GivenStates(self.backbone, self.backbone.norm(hidden)[:, self.lead :])
        zeros = torch.zeros_like(columns)
        return self.task.logits(given, RankingBatch(tokens, zeros, columns, numbers, zeros))


def split_parts(backbone: LateBackbone, task: Ranking, examples: Sequence[Example]) -> list[Part]:
    """Return a run as two graphs, with what each is given at some requests, the largest first."""
    lower, lead = LowerGraph(backbone), lead_of(backbone)
    given: list[Inputs] = []

    def read(inputs: Inputs) -> States:
        given.append(inputs)
        with torch.no_grad():
            return np.asarray(lower(*(torch.from_numpy(inputs[name]) for name in ("ids", "keep", "targets"))))

    feed = SplitFeed(read, SegmentCache("export"), lead, backbone.config.max_segments)
    asked = sorted(examples, key=lambda example: -len(example[1]))
    joint = [{**feed(tree), "columns": branch_ends(tree), "numbers": numbers} for tree, numbers in asked]
    alone = sorted(map(dict, given), key=lambda inputs: -inputs["ids"].size)
    rows, tokens, points = {0: "segments", 1: "tokens"}, {1: "tokens"}, {0: "candidates"}
    trees = dict.fromkeys(("states", "path", "positions", "blocks", "branches"), tokens)
    logits = f"logits_{backbone.num_layers}"
    return [
        Part(LOWER_FILE, lower, alone, {"ids": rows, "keep": rows, "targets": {0: "segments"}}, ["states"]),
        Part(
            UPPER_FILE,
            UpperGraph(backbone, task, len(lead)),
            joint,
            {**trees, "columns": points, "numbers": points},
            [logits],
        ),
    ]


def lead_of(backbone: LateBackbone) -> tuple[int, ...]:
    """Return the ids of the virtual tokens that a backbone reads before every text."""
    zero = torch.zeros(1, 1, dtype=torch.long)
    text = TokenBatch(ids=zero, keep=zero == 0, positions=zero, blocks=zero, branches=zero, segments=zero)
    return tuple(backbone.extend(text).ids[0, :-1].tolist())
