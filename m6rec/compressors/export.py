"""A tuned ranking run as ONNX graphs, held against the model they came from. Knows no quantisation."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.compressors.exits import ExitingBackbone, GivenStates
from m6rec.compressors.weights import merged
from m6rec.edge.folder import GRAPH_FILE
from m6rec.edge.graphs import Graphs, feed
from m6rec.errors import RunError, needs
from m6rec.tasks.ranking.data import RankingBatch, ranking_batch
from m6rec.tasks.ranking.task import Ranking
from m6rec.text.batch import TokenBatch
from m6rec.text.tokenize import TokenizedLayout

# Largest difference of a logit between the graph and the model, both in float32.
TOLERANCE = 1e-4
# Sizes of 1 would be taken for a fixed one by the exporter where shapes are broadcast.
_SMALLEST = {"tokens": 2}
Example = tuple[TokenizedLayout, NDArray[np.float32]]


class RankingGraph(nn.Module):
    """One user's tree to logits at every depth that can answer: the model as a graph of plain arrays.

    Args:
        backbone: tuned, in evaluation mode.
        task: the ranking task on it.
    """

    def __init__(self, backbone: Backbone, task: Ranking) -> None:
        super().__init__()
        self.backbone, self.task = backbone, task

    def forward(
        self, ids: Tensor, positions: Tensor, blocks: Tensor, branches: Tensor, columns: Tensor, numbers: Tensor
    ) -> tuple[Tensor, ...]:
        """Return ``[candidates, 2]`` logits of no and yes for each depth."""
        keep = torch.ones_like(ids, dtype=torch.bool)
        tokens = TokenBatch(ids=ids, keep=keep, positions=positions, blocks=blocks, branches=branches)
        batch = RankingBatch(tokens, torch.zeros_like(columns), columns, numbers, torch.zeros_like(columns))
        return tuple(logits_by_depth(self.task, self.backbone, batch).values())


@dataclass(frozen=True)
class Part:
    """A graph to be written.

    Args:
        file: its name in the folder.
        module: what it computes, its inputs in order.
        inputs: of several requests, name -> array; the first one is what the exporter runs.
        open_sizes: input -> its dimensions that a request may change -> what they count.
        outputs: names.
    """

    file: str
    module: nn.Module
    inputs: list[dict[str, NDArray[Any]]]
    open_sizes: dict[str, dict[int, str]]
    outputs: list[str]


def whole_part(graph: RankingGraph, examples: Sequence[Example]) -> Part:
    """Return a model as one graph; the example with most candidates comes first."""
    inputs = [feed(*example) for example in sorted(examples, key=lambda example: -len(example[1]))]
    trees = {name: {1: "tokens"} for name in ("ids", "positions", "blocks", "branches")}
    sizes = {**trees, "columns": {0: "candidates"}, "numbers": {0: "candidates"}}
    return Part(GRAPH_FILE, graph, inputs, sizes, [f"logits_{depth}" for depth in depths_of(graph.backbone)])


def export_graph(part: Part, backbone: Backbone, path: Path) -> None:
    """Write a graph as ONNX, in float32, its open sizes left open.

    Args:
        part: what to export.
        backbone: whose adapter is folded into the weights on the way.
        path: file to write.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    dims = {name: torch.export.Dim(name, min=_SMALLEST.get(name, 1)) for name in _names(part.open_sizes)}
    with needs("edge"):
        import onnxscript  # noqa: F401  (torch's exporter wants it, and it brings onnx_ir)
        from onnx_ir.passes.common import DeduplicateInitializersPass
    with torch.no_grad(), merged(backbone), quiet():
        program = torch.onnx.export(
            part.module.eval(),
            tuple(map(torch.from_numpy, part.inputs[0].values())),
            dynamo=True,
            dynamic_shapes=tuple(
                {axis: dims[name] for axis, name in part.open_sizes[key].items()} for key in part.inputs[0]
            ),
            input_names=list(part.inputs[0]),
            output_names=part.outputs,
            verbose=False,
        )
        assert program is not None
        # Layers that share weights: each has got a transposed copy of its own, which only their content tells apart.
        DeduplicateInitializersPass(size_limit=1 << 31)(program.model)
        program.save(path, external_data=False)  # inside: until then it holds the very weights that are merged


def check_parity(task: Ranking, backbone: Backbone, graphs: Graphs, examples: Sequence[Example]) -> float:
    """Return the largest difference of a logit between graphs and the model that they were exported from.

    Raises:
        RunError: it is larger than rounding explains.
    """
    largest = 0.0
    for tree, numbers in examples:
        batch = ranking_batch([tree], [numbers], None, task.tokenizer.pad_id)
        with torch.no_grad():
            wanted = logits_by_depth(task, backbone, batch)
        for depth, logits in wanted.items():
            largest = max(largest, float(np.abs(graphs.logits(tree, numbers, depth) - logits.numpy()).max()))
    if not largest <= TOLERANCE:
        raise RunError(f"the exported graph differs from the model by {largest:.2g}, expected at most {TOLERANCE}")
    return largest


def depths_of(backbone: Backbone) -> tuple[int, ...]:
    """Return the layers after which a backbone has an answer."""
    exits = isinstance(backbone, ExitingBackbone)
    return tuple(range(1, backbone.num_layers + 1)) if exits else (backbone.num_layers,)


def logits_by_depth(task: Ranking, backbone: Backbone, batch: RankingBatch) -> dict[int, Tensor]:
    """Return ``[candidates, 2]`` logits of no and yes at each depth that has an answer."""
    if not isinstance(backbone, ExitingBackbone):
        return {backbone.num_layers: task.logits(backbone, batch)}
    views = [GivenStates(backbone, states) for states in backbone.every_depth(batch.tokens)]
    return {depth: task.logits(view, batch) for depth, view in enumerate(views, start=1)}


def _names(open_sizes: dict[str, dict[int, str]]) -> set[str]:
    return {name for axes in open_sizes.values() for name in axes.values()}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress of exporter and quantiser, and their warnings about their own insides, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
