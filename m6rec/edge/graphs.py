"""The graphs of an exported run, answered by onnxruntime: one for a whole tree, or two with kept segments between.

Knows no words and no torch.
"""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m6rec.edge.folder import GRAPH_FILE, LOWER_FILE, UPPER_FILE, EdgeCard
from m6rec.edge.segments import SplitFeed
from m6rec.errors import RunError, needs
from m6rec.late_interaction.cache import SegmentCache
from m6rec.text.tokenize import TokenizedLayout


class Graphs(Protocol):
    """What answers trees."""

    def logits(self, tree: TokenizedLayout, numbers: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        """Return ``[candidates, 2]`` logits of no and yes of every branch, from ``depth`` layers."""
        ...


class WholeGraph:
    """One graph that reads a tree at once, and can answer at several depths.

    Args:
        folder: an edge folder.
        num_threads: of onnxruntime; speed only.

    Raises:
        MissingExtraError, RunError: as :func:`open_graph`.
    """

    def __init__(self, folder: Path, num_threads: int = 1) -> None:
        self._session = open_graph(folder / GRAPH_FILE, num_threads)

    def logits(self, tree: TokenizedLayout, numbers: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        """Return ``[candidates, 2]`` logits; no layer beyond ``depth`` is run."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        found: NDArray[np.float32] = self._session.run([f"logits_{depth}"], feed(tree, numbers), options)[0]
        return found


class SplitGraphs:
    """Two graphs of a late-interacting run: segments alone, whose states are kept, then all of them together.

    In float32, what is kept equals what is read anew. In eight bits a segment's states differ in the last digits with
    those that it was read beside, for activations are rounded by the range of a whole pass.

    Args:
        folder: an edge folder.
        card: its.
        num_threads: of onnxruntime; speed only.
        cache: of segments; default: one in memory.

    Attributes:
        cache: what is kept; its version is the lower graph's hash.

    Raises:
        MissingExtraError, RunError: as :func:`open_graph`.
    """

    def __init__(self, folder: Path, card: EdgeCard, num_threads: int = 1, cache: SegmentCache | None = None) -> None:
        lower = open_graph(folder / LOWER_FILE, num_threads)
        self._upper = open_graph(folder / UPPER_FILE, num_threads)
        version = hashlib.blake2b((folder / LOWER_FILE).read_bytes(), digest_size=16).hexdigest()
        self.cache = cache or SegmentCache(version)
        self._feed = SplitFeed(lambda inputs: lower.run(None, inputs)[0], self.cache, card.lead, card.max_segments or 0)

    def logits(self, tree: TokenizedLayout, numbers: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        """Return ``[candidates, 2]`` logits; only segments that are not kept go through the lower graph."""
        inputs = {**self._feed(tree), "columns": branch_ends(tree), "numbers": numbers}
        found: NDArray[np.float32] = self._upper.run([f"logits_{depth}"], inputs)[0]
        return found


def open_graphs(folder: Path, card: EdgeCard, num_threads: int = 1) -> Graphs:
    """Return the graphs of an edge folder.

    Raises:
        MissingExtraError, RunError: as :func:`open_graph`.
    """
    if card.max_segments is None:
        return WholeGraph(folder, num_threads)
    return SplitGraphs(folder, card, num_threads)


def feed(tree: TokenizedLayout, numbers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return one tree as the whole graph's inputs; a branch is read at its last token."""
    rows = {name: getattr(tree, name)[None].astype(np.int64) for name in ("ids", "positions", "blocks", "branches")}
    return {**rows, "columns": branch_ends(tree), "numbers": numbers}


def branch_ends(tree: TokenizedLayout) -> NDArray[np.int64]:
    """Return the column of every branch's last token."""
    last = np.append(tree.branches[1:], -1) != tree.branches
    return np.flatnonzero((tree.branches > 0) & last).astype(np.int64)


def open_graph(path: Path, num_threads: int = 1) -> Any:
    """Return an onnxruntime session over a graph.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        RunError: the file is missing or damaged.
    """
    with needs("edge"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors are of many classes, one a status code
        raise RunError(f"{path} cannot be read ({error}); export the run again") from error
