"""The ranker's part: who looks closer at what a retriever has found, how sure it is, and whether it can be trusted.

Knows lists of items at moments; no loss and no file.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.data.histories import Histories, Judgements
from m6rec.errors import RunError
from m6rec.metrics.calibration import ece
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.retrieval.item_space import ItemSpace, last_segments
from m6rec.tasks.retrieval.neighbours import Links, sharpen
from m6rec.training.moments import Moments

Floats = NDArray[np.float32]
NUM_FOLDS = 5
# A list's text vectors are looked up one by one: 50 items of 256 numbers are 51 kB a moment.
MOMENTS_AT_ONCE = 512
# Fewer validation lists than this say nothing about a ranker.
FEWEST_LISTS = 20
logger = logging.getLogger(__name__)


class Judge(Protocol):
    """Gives the numbers that a ranker goes by.

    Attributes:
        start: the weight of each number that the ranker starts with.
    """

    start: tuple[float, ...]

    def numbers(self, moments: Moments, items: NDArray[np.int32], retrieved: Floats) -> Floats:
        """Return ``[num_moments, k, num_numbers]``.

        Args:
            moments: what is asked.
            items: ``[num_moments, k]`` items to look at; -1 = none, whose numbers mean nothing.
            retrieved: ``[num_moments, k]`` the retriever's own logits of them.
        """
        ...


class FusedJudge:
    """The retriever's logit, what followed the last items elsewhere, and the likeness of texts, summed.

    What follows what is counted on other users than the one who is judged: a user's own next event would otherwise
    stand in the counts by which it is judged, and every positive would look sure.

    Args:
        space: a finished retrieval task's; its weights are the ranker's start.
        train: training events.
        folds: groups of users, each judged by the counts of the others.
    """

    def __init__(self, space: ItemSpace, train: Histories, folds: int = NUM_FOLDS) -> None:
        self.space, self.folds = space, folds
        self.start: tuple[float, ...] = (1.0, space.cooccurrence, space.text)
        fold = train.users % folds
        self._links = [Links.count(train.select(fold != number), space.config.window) for number in range(folds)]

    def numbers(self, moments: Moments, items: NDArray[np.int32], retrieved: Floats) -> Floats:
        """Return the three numbers of each item."""
        starts = range(0, max(1, len(moments)), MOMENTS_AT_ONCE)
        parts = [np.arange(start, min(len(moments), start + MOMENTS_AT_ONCE)) for start in starts]
        return np.concatenate([self._numbers(moments.take(part), items[part], retrieved[part]) for part in parts])

    def _numbers(self, moments: Moments, items: NDArray[np.int32], retrieved: Floats) -> Floats:
        window = self.space.config.window
        histories = [moments.items(row, window).astype(np.int64) for row in range(len(moments))]
        places = np.maximum(items, 0)
        followed = np.zeros(items.shape, np.float32)
        for fold, links in enumerate(self._links):
            rows = np.flatnonzero(moments.users % self.folds == fold)
            counted = links.follow([histories[row] for row in rows], len(self.space.texts), self.space.config)
            followed[rows] = np.take_along_axis(sharpen(self.space.kin.inherit(counted)), places[rows], axis=1)
        known = [history[history >= 0] for history in histories]
        profiles = self.space.profiles(last_segments(known, window))
        alike = torch.einsum("nw,nkw->nk", profiles, self.space.texts[torch.from_numpy(places.astype(np.int64))])
        return np.stack([retrieved, followed, alike.numpy()], axis=2).astype(np.float32)


class CrossJudge:
    """A ranking run: history and item read together.

    Args:
        task: trained, over the dataset at hand.
        backbone: tuned.
    """

    start: tuple[float, ...] = (1.0,)

    def __init__(self, task: Ranking, backbone: Backbone) -> None:
        self._scorer = RankingScorer(task, backbone, "valid", name="ranker")

    def numbers(self, moments: Moments, items: NDArray[np.int32], retrieved: Floats) -> Floats:
        """Return the ranker's logit of a yes."""
        rows, columns = np.nonzero(items >= 0)
        pairs = Judgements(
            history=moments.history,
            users=moments.users[rows].astype(np.int32),
            items=items[rows, columns],
            labels=np.zeros(len(rows), np.float32),
            lengths=moments.lengths[rows],
        )
        chances = np.clip(self._scorer.score_pairs(self._scorer.task.placed(pairs)).astype(np.float64), 1e-6, 1 - 1e-6)
        logits = np.zeros((*items.shape, 1), np.float32)
        logits[rows, columns, 0] = np.log(chances / (1 - chances))
        return logits


class Ranker(nn.Module):
    """Numbers of an item to a logit, and the logit to a probability that it is what came next.

    Args:
        start: weight of each number.
    """

    slope: Tensor
    offset: Tensor

    def __init__(self, start: tuple[float, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, numbers: Float[Tensor, "*lists numbers"]) -> Float[Tensor, "*lists"]:
        """Return logits, comparable within a list."""
        return numbers @ self.weight

    @torch.no_grad()
    def probabilities(self, numbers: Floats) -> Floats:
        """Return calibrated probabilities, comparable over lists; shaped as ``numbers`` but for the last axis."""
        found: Floats = torch.sigmoid(self.slope * self(torch.from_numpy(numbers)) + self.offset).numpy()
        return found

    @torch.enable_grad()
    def calibrate(self, logits: Tensor, labels: Tensor) -> None:
        """Fit slope and offset of a logistic curve. **Source:** Platt, Probabilistic outputs for SVMs, 1999."""
        weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
        logits, labels = logits.double(), labels.double()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(weights[0] * logits + weights[1], labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            self.slope.fill_(weights[0])
            self.offset.fill_(weights[1])


@dataclass(frozen=True)
class Exam:
    """What a ranker is held against: the retriever's lists on validation, and some items at random.

    Args:
        ids: ``[num_lists, 1 + depth]`` items, the target first, -1 = none.
        retrieved: ``[num_lists, 1 + depth]`` the retriever's logits.
        numbers: ``[num_lists, 1 + depth, num_numbers]`` the judge's.
        random: ``[num_lists, num_random, num_numbers]`` the judge's, of random items.
    """

    ids: NDArray[np.int32]
    retrieved: Floats
    numbers: Floats
    random: Floats


@dataclass(frozen=True)
class RankerReport:
    """How good the ranker is on validation.

    Args:
        lists: how many.
        found: share of targets that the retriever found.
        retriever_ndcg: NDCG@10 of its lists in the retriever's order.
        ranker_ndcg: NDCG@10 of the same lists in the ranker's.
        auc: chance that the ranker puts the target above a random item.
        ece: expected calibration error of its probabilities in the lists.
    """

    lists: int
    found: float
    retriever_ndcg: float
    ranker_ndcg: float
    auc: float
    ece: float

    @property
    def is_better(self) -> bool:
        """Whether the ranker orders better than the retriever: without that, it can neither denoise nor teach."""
        return self.ranker_ndcg > self.retriever_ndcg


@torch.no_grad()
def examine(ranker: Ranker, exam: Exam) -> RankerReport:
    """Hold the ranker against validation, and calibrate it there.

    Raises:
        RunError: the ranker likes what users took *less* than what they did not: its labels are swapped.
    """
    if not len(exam.ids):
        return RankerReport(0, 0.0, 0.0, 0.0, 0.5, 0.0)
    logits, random = ranker(torch.from_numpy(exam.numbers)).numpy(), ranker(torch.from_numpy(exam.random)).numpy()
    auc = float((random < logits[:, :1]).mean() + 0.5 * (random == logits[:, :1]).mean())
    if len(exam.ids) >= FEWEST_LISTS and auc < 0.5:
        raise RunError(
            f"the ranker puts what users took below random items (AUC {auc:.3f} on {len(exam.ids)} validation lists), "
            "expected more than .5: is its label order swapped, or was it trained on another task?"
        )
    real = exam.ids[:, 1:] >= 0
    ranks = [1 + ((scores[:, 1:] > scores[:, :1]) & real).sum(1) for scores in (exam.retrieved, logits)]
    found = ranks[0] <= real.sum(1)
    retriever, teacher = (float((found * (rank <= 10) / np.log2(rank + 1)).mean()) for rank in ranks)
    # A target that the retriever did not find is no part of its list.
    shown, labels = np.concatenate([found[:, None], real], axis=1), np.zeros(exam.ids.shape, np.float32)
    labels[:, 0] = 1
    ranker.calibrate(torch.from_numpy(logits[shown]), torch.from_numpy(labels[shown]))
    error = float(ece(labels[shown], ranker.probabilities(exam.numbers)[shown]))
    return RankerReport(len(exam.ids), float(found.mean()), retriever, teacher, auc, error)
