"""A tuned ranking run as an ONNX graph, held against the model it came from. Knows no quantisation."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.compressors.exits import ExitingBackbone, GivenStates
from m6rec.compressors.weights import merged
from m6rec.edge.folder import INPUTS
from m6rec.edge.recommender import feed, open_graph
from m6rec.errors import MissingExtraError, RunError
from m6rec.tasks.ranking import Ranking
from m6rec.tasks.ranking_data import RankingBatch
from m6rec.text.batch import TokenBatch
from m6rec.text.tokenize import TokenizedLayout

# Largest difference of a logit between the graph and the model, both in float32.
TOLERANCE = 1e-4


class RankingGraph(nn.Module):
    """One user's tree to logits at every depth that can answer: the model as a graph of plain arrays.

    Args:
        backbone: tuned, in evaluation mode.
        task: the ranking task on it.

    Attributes:
        depths: layers after which there is an answer.
    """

    def __init__(self, backbone: Backbone, task: Ranking) -> None:
        super().__init__()
        self.backbone, self.task = backbone, task
        exits = isinstance(backbone, ExitingBackbone)
        self.depths = tuple(range(1, backbone.num_layers + 1)) if exits else (backbone.num_layers,)

    def forward(
        self, ids: Tensor, positions: Tensor, blocks: Tensor, branches: Tensor, columns: Tensor, numbers: Tensor
    ) -> tuple[Tensor, ...]:
        """Return ``[candidates, 2]`` logits of no and yes for each depth."""
        keep = torch.ones_like(ids, dtype=torch.bool)
        tokens = TokenBatch(ids=ids, keep=keep, positions=positions, blocks=blocks, branches=branches)
        batch = RankingBatch(tokens, torch.zeros_like(columns), columns, numbers, torch.zeros_like(columns))
        if not isinstance(self.backbone, ExitingBackbone):
            return (self.task.logits(self.backbone, batch),)
        views = [GivenStates(self.backbone, states) for states in self.backbone.every_depth(tokens)]
        return tuple(self.task.logits(view, batch) for view in views)


def export_graph(graph: RankingGraph, tree: TokenizedLayout, numbers: Any, path: Path) -> None:
    """Write a graph as ONNX, in float32, with the number of tokens and of candidates left open.

    Args:
        graph: what to export.
        tree: an example with several candidates.
        numbers: its ``[candidates, features]`` statistics.
        path: file to write.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    inputs = feed(tree, numbers)
    tokens, points = torch.export.Dim("tokens", min=2), torch.export.Dim("candidates", min=1)
    shapes = {name: {1: tokens} for name in INPUTS[:4]} | {"columns": {0: points}, "numbers": {0: points}}
    try:
        import onnxscript  # noqa: F401  (torch's exporter wants it, and it brings onnx_ir)
        from onnx_ir.passes.common import DeduplicateInitializersPass
    except ImportError as error:
        raise MissingExtraError("onnxscript", "edge") from error
    with torch.no_grad(), merged(graph.backbone), _quiet():
        program = torch.onnx.export(
            graph.eval(),
            tuple(torch.from_numpy(inputs[name]) for name in INPUTS),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(INPUTS),
            output_names=[f"logits_{depth}" for depth in graph.depths],
            verbose=False,
        )
        assert program is not None
        # Layers that share weights: each has got a transposed copy of its own, which only their content tells apart.
        DeduplicateInitializersPass(size_limit=1 << 31)(program.model)
        program.save(path, external_data=False)  # inside: until then it holds the very weights that are merged


def check_parity(graph: RankingGraph, path: Path, examples: list[tuple[TokenizedLayout, Any]]) -> float:
    """Return the largest difference of a logit between a file and the model it was exported from.

    Raises:
        RunError: it is larger than rounding explains.
    """
    session, largest = open_graph(path), 0.0
    for tree, numbers in examples:
        inputs = feed(tree, numbers)
        with torch.no_grad():
            wanted = graph(*(torch.from_numpy(inputs[name]) for name in INPUTS))
        for found, logits in zip(session.run(None, inputs), wanted, strict=True):
            largest = max(largest, float(np.abs(found - logits.numpy()).max()))
    if not largest <= TOLERANCE:
        raise RunError(f"the exported graph differs from the model by {largest:.2g}, expected at most {TOLERANCE}")
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, and its warnings about its own insides, off the screen."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
