"""An exported ranking run as a recommender: numpy, an engine and tokenizers, no torch. Knows no training."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.data.features import STATISTICS, features, statistics_of_request
from m6rec.data.statistics import StatisticsConfig
from m6rec.edge.folder import TOKENIZER_FILE, WORDS_FOLDER, EdgeCard, EdgeCatalogue
from m6rec.edge.graphs import DEFAULT_ENGINE, open_graphs
from m6rec.edge.tokenizer import EdgeTokenizer
from m6rec.errors import ConfigError
from m6rec.requests import Event, History, Recommendation, named, read_candidate, read_events, with_record
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer, TokenizedLayout


class EdgeRecommender:
    """Ranks candidates for a history, as the run that was exported does.

    Args:
        folder: as ``m6rec compress RUN quantize`` writes it.
        num_threads: of the engine; speed only.
        engine: name on the shelf of engines: what runs the graphs.

    Attributes:
        graphs: what answers; of a late-interacting run, ``graphs.cache`` keeps its segments.
        depth: layers that are run; set it to any of ``card.depths``, or have :meth:`fit` choose.

    Raises:
        RunError: the folder is incomplete, damaged or of another version.
        UnknownNameError: no such engine.
        MissingExtraError: the engine or tokenizers is not installed.
    """

    def __init__(self, folder: str | Path, num_threads: int = 1, engine: str = DEFAULT_ENGINE) -> None:
        self.folder = Path(folder)
        self.card = EdgeCard.read(self.folder)
        self.depth, self.catalogue = self.card.depth, EdgeCatalogue.read(self.folder)
        words = self.folder / WORDS_FOLDER
        self.renderer = Renderer(str(words / "data_templates" / f"{self.card.domain}.yaml"))
        self.prompt = Prompt(str(words / "prompts" / f"{self.card.prompt}.yaml"))
        self.tokenizer = TextTokenizer(EdgeTokenizer(self.folder / TOKENIZER_FILE, self.card.special))
        self.graphs = open_graphs(self.folder, self.card, num_threads, engine)

    def rank(
        self,
        history: History,
        candidates: Sequence[str | Event],
        context: Mapping[str, Any] | None = None,
        *,
        depth: int | None = None,
    ) -> list[Recommendation]:
        """Return candidates (ids, titles, or mappings of an item's fields) by the probability of a yes.

        Args:
            history: what the user did, oldest first; may be empty.
            candidates: what to order.
            context: what else is known of the request: nothing here asks it, for no scenes are exported.
            depth: layers to run; ``None`` = the recommender's own.

        Raises:
            ConfigError: the graph has no answer at that depth.
            DataError: an event or a candidate that cannot be read.
        """
        items = [read_candidate(self.catalogue, candidate) for candidate in candidates]
        events = [with_record(self.catalogue, event) for event in read_events(history, self.catalogue)]
        scores = self.score(events, items, self.depth if depth is None else depth)
        order = np.argsort(-scores, kind="stable")
        return [named(items[index][1], float(scores[index])) for index in order]

    def fit(
        self, budget_ms: float, history: History, candidates: Sequence[str | Event], *, repeats: int = 5
    ) -> dict[int, float]:
        """Set ``depth`` to the deepest exit that answers a request like this one in time on this very machine.

        Args:
            budget_ms: wall time that a request may take. Where no exit is so fast, the first one it is.
            history: of a typical request.
            candidates: of a typical request.
            repeats: requests at each depth, all depths in turns; one more goes before, untimed.

        Returns:
            The median milliseconds of a request at each depth.

        Source: M6-Rec (arXiv 2205.08084), M6-Edge: exits at every layer, the depth by what the hardware allows.
        """
        taken: dict[int, list[float]] = {depth: [] for depth in self.card.depths}
        for turn in range(repeats + 1):
            for depth, times in taken.items():
                started = time.perf_counter()
                self.rank(history, candidates, depth=depth)
                if turn:
                    times.append(1000 * (time.perf_counter() - started))
        costs = {depth: statistics.median(times) for depth, times in taken.items()}
        self.depth = max((depth for depth, cost in costs.items() if cost <= budget_ms), default=min(costs))
        return costs

    def score(
        self, events: Sequence[Mapping[str, Any]], items: Sequence[tuple[int | None, Mapping[str, Any]]], depth: int
    ) -> NDArray[np.float32]:
        """Return ``[candidates]`` probabilities of a yes, in the candidates' order."""
        config = StatisticsConfig(threshold=self.card.threshold, smoothing=self.card.smoothing)
        numbers = statistics_of_request(self.catalogue.numbers, events, items, config)
        given, user = features(numbers), UserText(events=events[-self.card.max_events :])
        branches = [
            Candidate(item=record, statistics={name: float(numbers[name][row]) for name in STATISTICS})
            for row, (_, record) in enumerate(items)
        ]
        size, scores = self.card.max_branches, [np.zeros(0, np.float32)]
        for start in range(0, len(items), size):
            layout = self.prompt.layout(self.renderer, user, branches[start : start + size])
            tree = self.tokenizer.layout(layout, min(self.card.max_tokens, self.prompt.budget_tokens))
            scores.append(self.answer(tree, given[start : start + size], depth))
        return np.concatenate(scores)

    def answer(self, tree: TokenizedLayout, numbers: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        """Return the probability of a yes of every branch of a tree, from ``depth`` layers.

        Raises:
            ConfigError: the graph has no answer at that depth.
        """
        if depth not in self.card.depths:
            known = ", ".join(map(str, self.card.depths))
            raise ConfigError(f"depth: got {depth}, expected one of {known}, at which {self.folder} can answer")
        logits = self.graphs.logits(tree, numbers, depth)
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        return (shifted[:, 1] / shifted.sum(1)).astype(np.float32)
