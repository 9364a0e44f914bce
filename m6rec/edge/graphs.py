"""The graphs of an exported run: one for a whole tree, or two with kept segments between.

Knows no words, no engine and no torch.
"""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m6rec.edge.engines import ENGINES
from m6rec.edge.engines.base import Engine
from m6rec.edge.folder import GRAPH_FILE, LOWER_FILE, UPPER_FILE, EdgeCard
from m6rec.edge.segments import SplitFeed
from m6rec.late_interaction.cache import SegmentCache
from m6rec.text.tokenize import TokenizedLayout

DEFAULT_ENGINE = "onnxruntime"


class Graphs(Protocol):
    """What answers trees."""

    def logits(self, tree: TokenizedLayout, numbers: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        """Return ``[candidates, 2]`` logits of no and yes of every branch, from ``depth`` layers."""
        ...


class WholeGraph:
    """One graph that reads a tree at once, and can answer at several depths.

    Args:
        graph: as an engine has it.
    """

    def __init__(self, graph: Engine) -> None:
        self._graph = graph

    def logits(self, tree: TokenizedLayout, numbers: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        """Return ``[candidates, 2]`` logits; no layer beyond ``depth`` is run."""
        found: NDArray[np.float32] = self._graph.run(feed(tree, numbers), f"logits_{depth}")
        return found


class SplitGraphs:
    """Two graphs of a late-interacting run: segments alone, whose states are kept, then all of them together.

    In float32, what is kept equals what is read anew. In eight bits a segment's states differ in the last digits with
    those that it was read beside, for activations are rounded by the range of a whole pass.

    Args:
        lower: reads segments.
        upper: reads their states together.
        card: of the folder.
        cache: of segments.

    Attributes:
        cache: what is kept.
    """

    def __init__(self, lower: Engine, upper: Engine, card: EdgeCard, cache: SegmentCache) -> None:
        self._upper, self.cache = upper, cache
        self._feed = SplitFeed(lower.run, cache, card.lead, card.max_segments or 0)

    def logits(self, tree: TokenizedLayout, numbers: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        """Return ``[candidates, 2]`` logits; only segments that are not kept go through the lower graph."""
        inputs = {**self._feed(tree), "columns": branch_ends(tree), "numbers": numbers}
        found: NDArray[np.float32] = self._upper.run(inputs, f"logits_{depth}")
        return found


def open_graphs(folder: Path, card: EdgeCard, num_threads: int = 1, engine: str = DEFAULT_ENGINE) -> Graphs:
    """Return the graphs of an edge folder.

    Args:
        folder: the edge folder.
        card: its.
        num_threads: of the engine; speed only.
        engine: name on their shelf; it changes results by rounding.

    Raises:
        UnknownNameError: no such engine.
        MissingExtraError: its package is not installed.
        RunError: a graph is missing or damaged.
    """
    kind = ENGINES.load(engine)

    def opened(name: str) -> Engine:
        graph: Engine = kind(folder / name, kind.Config(num_threads))
        return graph

    if card.max_segments is None:
        return WholeGraph(opened(GRAPH_FILE))
    lower, upper = opened(LOWER_FILE), opened(UPPER_FILE)
    # Another graph or another engine gives other states.
    version = hashlib.blake2b((folder / LOWER_FILE).read_bytes() + engine.encode(), digest_size=16).hexdigest()
    return SplitGraphs(lower, upper, card, SegmentCache(version))


def feed(tree: TokenizedLayout, numbers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return one tree as the whole graph's inputs; a branch is read at its last token."""
    rows = {name: getattr(tree, name)[None].astype(np.int64) for name in ("ids", "positions", "blocks", "branches")}
    return {**rows, "columns": branch_ends(tree), "numbers": numbers}


def branch_ends(tree: TokenizedLayout) -> NDArray[np.int64]:
    """Return the column of every branch's last token."""
    last = np.append(tree.branches[1:], -1) != tree.branches
    return np.flatnonzero((tree.branches > 0) & last).astype(np.int64)
