"""Ranking: will this user say yes to this candidate? One pass over a tree scores every candidate and moment.

Knows no loop and no report.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.config import plain
from m6rec.data.features import NUM_FEATURES, STATISTICS, features, statistics_of_request
from m6rec.data.histories import Judgements
from m6rec.data.statistics import ItemStatistics, StatisticsConfig
from m6rec.errors import DataError
from m6rec.nn.heads import NumberHead
from m6rec.tasks.base import Loss, Material, Task, built_over
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.heads import load_heads, read_names, save_heads
from m6rec.tasks.ranking.data import (
    RankingBatch,
    TreeWriter,
    every_event,
    pair_statistics,
    ranking_batch,
    with_sampled_negatives,
    without_history,
)
from m6rec.tasks.trees import read_tree, slates, write_trees
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer, TokenizedLayout

if TYPE_CHECKING:
    import datasets

Placed = tuple[int | None, Mapping[str, Any]]
"""A candidate's position in the catalogue (``None`` = a stranger), and its fields."""
Answer = Callable[[TokenizedLayout, NDArray[np.float32]], NDArray[np.float32]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankingConfig:
    """Settings of the ranking task; all change results unless they say otherwise."""

    threshold: float | None = None
    """Value from which an event is a yes, e.g. 4 of 5 stars; null = labels come from impressions, or from sampled
    negatives where the log has none."""
    num_negatives: int = 4
    """Random unmet items beside each event, where the log has no labels."""
    max_events: int = 24
    """Longest stretch of history in one tree; a candidate sees at least half of it."""
    max_branches: int = 24
    """Most candidates in one tree; memory and speed only."""
    history_dropout: float = 0.3
    """Share of training pairs that are shown as if the user were new: at serving time many are."""
    loss: Literal["pointwise", "listwise"] = "pointwise"
    """Cross entropy of each yes or no, or of the yes among all candidates of its tree."""
    numbers: bool = True
    """Whether the statistics also reach the head as numbers, beside their words in the prompt. Training then starts
    from what the numbers say alone, and the language model learns the rest."""
    smoothing: float = 10.0
    """How many events of average success an item's rate starts with."""
    prompt: str = "ranking"
    """Prompt file."""


class Ranking(Task):
    """Probability of a yes for a candidate, read at [EOS] of its branch.

    Source: M6-Rec (2205.08084), section 3 (CTR scoring): candidate and cross statistics in the target region, state at
        [EOS], softmax head, cross entropy.
    Differs: all candidates and moments of a user are branches of one tree; statistics also enter as numbers, because
        words lose their precision. A tuner with options brings the softmax weight; otherwise a linear head is trained.
    """

    name = "ranking"
    Config = RankingConfig
    item_statistics: Tensor

    def __init__(self, config: RankingConfig, catalogue: Catalogue, renderer: Renderer, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.catalogue, self.renderer = config, catalogue, renderer
        self.tokenizer = TextTokenizer(backbone.tokenizer)
        self.writer = TreeWriter(Prompt(config.prompt), renderer, self.tokenizer, backbone.max_tokens)
        self.norm = nn.LayerNorm(backbone.hidden_size)
        self.head = nn.Linear(backbone.hidden_size, 2) if backbone.options(2) is None else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
        self.numbers = NumberHead(NUM_FEATURES) if config.numbers else None
        self.register_buffer("item_statistics", torch.full((len(catalogue), 2), float("nan"), dtype=torch.float64))
        self._material: Material | None = None
        self._train: Judgements | None = None
        self._rows: "datasets.Dataset | None" = None
        self._statistics: dict[str, ItemStatistics] = {}

    @classmethod
    def build(cls, config: RankingConfig, material: Material, backbone: Backbone) -> "Ranking":
        """Return a new task over a dataset.

        Raises:
            DataError: a threshold for a log without values, or scenes that no pair is of.
        """
        torch.manual_seed(material.seed)
        histories = material.dataset.histories()
        train = histories.before("train")
        catalogue = Catalogue.of(material.dataset, material.renderer, train)
        task = cls(config, catalogue, material.renderer, backbone)
        task._material = material
        task._train = task.pairs("train")
        if material.scenes is not None:
            material.scenes.check(material.dataset, task._train)
        counted = task.statistics_for("train").items(np.arange(len(catalogue)))
        task.item_statistics.copy_(
            torch.from_numpy(np.stack([counted["popularity"], counted["positive_rate"]], axis=1))
        )
        if task.numbers is not None and len(task._train):
            pairs, numbers = task._training_pairs()
            task.numbers.fit(torch.from_numpy(features(numbers)), torch.from_numpy(pairs.labels), material.seed)
        return task

    @property
    def material(self) -> Material:
        """What the task is trained on.

        Raises:
            RunError: a loaded run has none.
        """
        return built_over(self._material)

    def pairs(self, split: Literal["train", "valid", "test"]) -> Judgements:
        """Return the labelled pairs of a split, with sampled negatives where the log has no labels."""
        return self.placed(self._labelled(split))

    def placed(self, pairs: Judgements) -> Judgements:
        """Return pairs with their scenes, where the task has any."""
        rule = self.material.scenes
        return pairs if rule is None else replace(pairs, scenes=rule.of_pairs(self.material.dataset, pairs))

    def _labelled(self, split: Literal["train", "valid", "test"]) -> Judgements:
        dataset = self.material.dataset
        if dataset.impressions is not None or self.config.threshold is not None:
            return dataset.judgements(split, self.config.threshold)
        positives = every_event(dataset.histories(), split)
        return with_sampled_negatives(positives, self.config.num_negatives, self.material.seed)

    def statistics_for(self, split: Literal["train", "valid", "test"]) -> ItemStatistics:
        """Return the numbers that may be known when ``split`` is predicted."""
        if split not in self._statistics:
            dataset = self.material.dataset
            config = StatisticsConfig(threshold=self.config.threshold, smoothing=self.config.smoothing)
            judged = self._train if dataset.impressions is not None else None
            self._statistics[split] = ItemStatistics(dataset.histories(), self.catalogue.records, config, split, judged)
        return self._statistics[split]

    def _training_pairs(self) -> tuple[Judgements, dict[str, NDArray[np.float64]]]:
        """Return the training pairs and their numbers, a share of them as if the user were new."""
        assert self._train is not None
        numbers = pair_statistics(self.statistics_for("train"), self._train, past_only=True)
        return without_history(self._train, numbers, self.config.history_dropout, self.material.seed)

    def examples(self) -> "datasets.Dataset":
        """Return the training trees, tokenised once into a memory-mapped dataset."""
        if self._rows is not None:  # the loop asks before every epoch
            return self._rows
        material = self.material
        pairs, statistics = self._training_pairs()
        groups = slates(pairs, self.config.max_events, self.config.max_branches)
        if not groups:
            raise DataError("no labelled pairs in the training period; look at the threshold and the split")
        numbers = features(statistics)
        extra = (
            {
                "labels": pairs.labels[slate.pairs].tolist(),
                "items": pairs.items[slate.pairs].tolist(),
                "numbers": numbers[slate.pairs].reshape(-1).tolist(),
                "scene": 0 if pairs.scenes is None else int(pairs.scenes[slate.pairs[0]]),
            }
            for slate in groups
        )
        dataset = material.dataset
        trees = self.writer.trees(
            groups, pairs, statistics, dataset.event_record, dataset.user_record, self.catalogue.texts
        )
        key = {
            "data": dataset.manifest.hash,
            "config": plain(self.config),
            "prompt": self.writer.prompt.path.read_text(encoding="utf-8"),
            "words": self.renderer.fingerprint,
            "tokens": self.tokenizer.control_ids,
            "max_tokens": self.writer.max_tokens,
            "seed": material.seed,
            "scenes": None if material.scenes is None else plain(material.scenes.config),
            "columns": ["labels", "items", "numbers", "scene"],
        }
        self._rows = write_trees(material.cache, trees, extra, key)
        return self._rows

    def lengths(self) -> Sequence[int]:
        """Return each tree's number of tokens."""
        lengths: list[int] = pc.list_value_length(self.examples().data["ids"]).to_pylist()
        return lengths

    def scenes(self) -> NDArray[np.int64]:
        """Return the number of each tree's scene."""
        return self.examples().data["scene"].to_numpy()

    def collate(self, examples: list[Mapping[str, Any]]) -> RankingBatch:
        """Make one batch of trees."""
        return ranking_batch(
            [read_tree(row) for row in examples],
            [np.asarray(row["numbers"], dtype=np.float32).reshape(-1, NUM_FEATURES) for row in examples],
            [np.asarray(row["labels"]) for row in examples],
            self.tokenizer.pad_id,
        )

    def logits(self, backbone: Backbone, batch: RankingBatch) -> Float[Tensor, "pairs classes"]:
        """Return no and yes of every pair."""
        head = self.head or backbone.options(2)
        assert head is not None

        def answer(states: Tensor, pairs: Tensor) -> Tensor:
            scores: Tensor = head(self.norm(states.float())).float()
            if self.numbers is not None:
                scores = scores + F.pad(self.numbers(batch.numbers[pairs]).float(), (1, 0))
            return scores

        return backbone.classify(batch.tokens, batch.rows, batch.columns, answer)

    def loss(self, backbone: Backbone, batch: RankingBatch) -> Loss:
        """Return the cross entropy of every pair, or of each tree's yes among its candidates."""
        scores = self.logits(backbone, batch)
        if self.config.loss == "pointwise":
            return Loss(F.cross_entropy(scores, batch.labels), float(len(batch.labels)))
        return _listwise(scores[:, 1] - scores[:, 0], batch)

    def score_pairs(
        self, backbone: Backbone, pairs: Judgements, split: Literal["valid", "test"]
    ) -> NDArray[np.float32]:
        """Return ``[num_pairs]`` probabilities of a yes from what may be known when ``split`` is predicted."""
        return self.score_trees(pairs, split, lambda tree, numbers: self._probabilities(backbone, [tree], [numbers]))

    def score_trees(self, pairs: Judgements, split: Literal["valid", "test"], answer: Answer) -> NDArray[np.float32]:
        """Return ``[num_pairs]`` probabilities from anything that answers trees (an exported graph, say).

        Args:
            pairs: what to score.
            split: what is predicted, which says what may be known.
            answer: tree, ``[candidates, features]`` numbers -> ``[candidates]`` probabilities.
        """
        statistics = pair_statistics(self.statistics_for(split), pairs, past_only=False)
        groups = slates(pairs, self.config.max_events, self.config.max_branches)
        dataset, numbers = self.material.dataset, features(statistics)
        trees = self.writer.trees(
            groups, pairs, statistics, dataset.event_record, dataset.user_record, self.catalogue.texts
        )
        result = np.empty(len(pairs), dtype=np.float32)
        for slate, tree in zip(groups, trees, strict=True):
            result[slate.pairs] = answer(tree, numbers[slate.pairs])
        return result

    def rank(self, backbone: Backbone, user: UserText, items: Sequence[Placed]) -> NDArray[np.float32]:
        """Return probabilities of a yes for candidates; nothing about the user has to be known.

        Args:
            user: profile and events.
            items: each candidate's position in the catalogue (``None`` = a stranger) and fields.
        """
        return self.rank_many(backbone, [(user, items)])[0]

    def rank_many(
        self,
        backbone: Backbone,
        requests: Sequence[tuple[UserText, Sequence[Placed]]],
        max_branches: int | None = None,
    ) -> list[NDArray[np.float32]]:
        """Return the probabilities of several requests' candidates, each as :meth:`rank` gives them.

        One tree a request is one batch of them all; several are read one by one, for memory's sake.
        """
        trees, numbers = self.trees(requests, max_branches)
        step = len(trees) if len(trees) <= len(requests) else 1
        parts = [slice(start, start + step) for start in range(0, len(trees), max(1, step))]
        scores = [self._probabilities(backbone, trees[part], numbers[part]) for part in parts]
        ends = np.cumsum([len(items) for _, items in requests])[:-1]
        return np.split(np.concatenate([*scores, np.zeros(0, dtype=np.float32)]), ends)

    def trees(
        self, requests: Sequence[tuple[UserText, Sequence[Placed]]], max_branches: int | None = None
    ) -> tuple[list[TokenizedLayout], list[NDArray[np.float32]]]:
        """Return requests as trees, and the ``[candidates, features]`` numbers of each tree's branches."""
        size, trees, numbers = max_branches or self.config.max_branches, [], []
        for user, items in requests:
            given = self._numbers(user, items)
            words = [record if place is None else self.catalogue.texts[place] for place, record in items]
            candidates = [
                Candidate(item=item, statistics={name: float(given[name][row]) for name in STATISTICS})
                for row, item in enumerate(words)
            ]
            shown = UserText(user.profile, user.context, user.events[-self.config.max_events :], user.now)
            for start in range(0, len(candidates), size):
                trees.append(self.writer.tree(shown, candidates[start : start + size]))
                numbers.append(features(given)[start : start + size])
        return trees, numbers

    def _numbers(self, user: UserText, items: Sequence[Placed]) -> dict[str, NDArray[np.float64]]:
        """Return the statistics of candidates for a user known by records alone."""
        config = StatisticsConfig(threshold=self.config.threshold, smoothing=self.config.smoothing)
        return statistics_of_request(self.item_statistics.cpu().numpy(), user.events, items, config)

    @torch.no_grad()
    def _probabilities(
        self, backbone: Backbone, trees: Sequence[TokenizedLayout], numbers: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        self.eval()
        batch = ranking_batch(trees, numbers, None, self.tokenizer.pad_id).to(self.item_statistics.device)
        result: NDArray[np.float32] = self.logits(backbone, batch).softmax(1)[:, 1].cpu().numpy()
        return result

    def save(self, folder: Path) -> None:
        """Write heads, item statistics and catalogue."""
        save_heads(self, folder, {})
        self.catalogue.save(folder / "catalogue")

    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote into a task over the same dataset."""
        load_heads(self, folder)

    @classmethod
    def load(cls, config: RankingConfig, folder: Path, renderer: Renderer, backbone: Backbone) -> "Ranking":
        """Read what ``save`` wrote."""
        read_names(folder)
        task = cls(config, Catalogue.load(folder / "catalogue", encoded=False), renderer, backbone)
        load_heads(task, folder)
        return task


def _listwise(scores: Float[Tensor, " pairs"], batch: RankingBatch) -> Loss:
    """Return the mean over positives of the cross entropy among the negatives of the same tree."""
    same = batch.rows[:, None] == batch.rows[None]
    positive = batch.labels == 1
    rival = same & ~positive[None]
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    table = scores[None].expand(len(scores), -1).masked_fill(~(rival | own), float("-inf"))
    counted = positive & rival.any(1)
    losses = torch.logsumexp(table, dim=1) - scores
    weight = float(counted.sum())
    return Loss((losses * counted).sum() / max(1.0, weight), weight)
