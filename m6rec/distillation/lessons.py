"""What a teacher says of a batch, and how a student is held against it: one lesson for each kind of answer.

Teacher and student are heard the same way, while the task's own loss runs; so a lesson needs no second pass and no task
learns that it is listened to. This module knows no transport, stream or loop.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from m6rec.backbones.base import Backbone, Head, WrappedBackbone
from m6rec.data.features import NUM_FEATURES
from m6rec.distillation.config import DistillationConfig, Taught
from m6rec.errors import ConfigError, DistillationError
from m6rec.nn.teaching import kl_of_classes, kl_of_top_k, listwise_kl, margin_mse, top_k_log_probs, vector_distance
from m6rec.tasks.base import Task
from m6rec.tasks.generation.data import GenerationBatch
from m6rec.tasks.ranking.data import RankingBatch
from m6rec.tasks.retrieval.history_flat import FlatBatch
from m6rec.tasks.retrieval.history_pooled import PooledBatch
from m6rec.text.batch import TokenBatch

Labels = dict[str, Tensor]
"""What a teacher says: tensors of one row a point (a candidate, a token, a position), half precision on the way."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a teacher is asked for; goes with every batch.

    Args:
        taught: what is taught.
        temperature: that softens probabilities.
        top_k: most likely tokens.
    """

    taught: Taught
    temperature: float
    top_k: int

    @classmethod
    def of(cls, config: DistillationConfig, task_name: str) -> "Ask":
        """Return what a recipe asks for.

        Raises:
            ConfigError: a task that nothing, or not this, can be taught to.
        """
        if task_name not in LESSONS:
            raise ConfigError(f"got distillation for task {task_name!r}, expected one of {', '.join(sorted(LESSONS))}")
        known = LESSONS[task_name].taught
        taught = config.taught or known[0]
        if taught not in known:
            raise ConfigError(f"distillation.taught: got {taught!r} for {task_name}, expected {' or '.join(known)}")
        return cls(taught, config.temperature, config.top_k)

    def words(self) -> dict[str, str]:
        """Return it as it goes with a message."""
        return {"ask": json.dumps(dataclasses.asdict(self))}

    @classmethod
    def read(cls, words: Mapping[str, str]) -> "Ask":
        """Return what :meth:`words` wrote.

        Raises:
            DistillationError: no such thing.
        """
        try:
            return cls(**json.loads(words["ask"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DistillationError(f"got a batch that does not say what it asks for ({error!r})") from error


class Lesson(ABC):
    """One kind of answer, as it is heard, sent and compared.

    Args:
        ask: what is taught.
    """

    taught: ClassVar[tuple[Taught, ...]]

    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    @abstractmethod
    def batch_type(self, task: Any) -> type:
        """Return the class of the task's batches."""

    @abstractmethod
    def space(self, task: Any, backbone: Backbone) -> str:
        """Return what teacher and student must agree on, in words."""

    @contextmanager
    @abstractmethod
    def heard(self, task: Any, backbone: Backbone) -> Iterator[tuple[Backbone, list[Tensor]]]:
        """Give a view of the backbone to run the task's loss on, and the list in which its answers then lie."""

    @abstractmethod
    def rows(self, batch: Any) -> Tensor:
        """Return ``[points]``: the example of each point, in the batch's order."""

    @abstractmethod
    def labels(self, answers: Tensor) -> Labels:
        """Return a teacher's ``[points, ...]`` answers as they are sent."""

    @abstractmethod
    def distance(self, answers: Tensor, labels: Labels, batch: Any) -> Tensor:
        """Return how far a student's ``[points, ...]`` answers are from the labels, as a mean."""

    @torch.no_grad()
    def label(self, task: Task, backbone: Backbone, batch: Any) -> Labels:
        """Return a teacher's labels of one batch."""
        with self.heard(task, backbone) as (view, answers):
            task.loss(view, batch)
        return {name: tensor.cpu() for name, tensor in self.labels(self.answers(answers, batch)).items()}

    def answers(self, heard: Sequence[Tensor], batch: Any) -> Tensor:
        """Return what was heard, point by point."""
        return torch.cat(list(heard))

    def check(self, labels: Labels, batch: Any) -> None:
        """Hold labels against the batch that they are of.

        Raises:
            DistillationError: another number of points, or numbers that are not finite.
        """
        points = len(self.rows(batch))
        if not labels or any(len(tensor) != points for tensor in labels.values()):
            shapes = {name: tuple(tensor.shape) for name, tensor in labels.items()}
            raise DistillationError(f"got labels of shapes {shapes}, expected {points} rows, one a point of the batch")
        for name, tensor in labels.items():
            # Minus infinity is the log of a share that rounds to nothing.
            if torch.isnan(tensor).any() or torch.isposinf(tensor).any():
                raise DistillationError(f"got labels {name!r} that are not finite; look at the teacher's weights")


class _Overheard(WrappedBackbone):
    """A view that keeps the logits it was asked for."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.said: list[Tensor] = []

    def classify(self, batch: TokenBatch, rows: Tensor, columns: Tensor, head: Head) -> Tensor:
        self.said.append(self.inner.classify(batch, rows, columns, head))
        return self.said[-1]

    def logits(self, hidden: Tensor) -> Tensor:
        self.said.append(self.inner.logits(hidden))
        return self.said[-1]


class ScoreLesson(Lesson):
    """Scores of candidates: each one's classes, or the order and distances in the lists of a tree.

    Source: Hinton et al. (arXiv 1503.02531) for the classes; RocketQAv2 (arXiv 2110.07367) for lists; Hofstätter et al.
        (arXiv 2010.02666) for margins.
    """

    taught = ("logits", "listwise", "margin")

    def batch_type(self, task: Any) -> type:
        """Return the class of ranking's batches."""
        return RankingBatch

    def space(self, task: Any, backbone: Backbone) -> str:
        """Return the classes, and the numbers that a batch carries, whether a task's head reads them or not.

        So a teacher may see what its student does not: privileged features (Xu et al., arXiv 1907.05171).
        """
        return f"no or yes of a candidate; {NUM_FEATURES} numbers in a batch"

    @contextmanager
    def heard(self, task: Any, backbone: Backbone) -> Iterator[tuple[Backbone, list[Tensor]]]:
        """Give a view that keeps what the task classifies."""
        view = _Overheard(backbone)
        yield view, view.said

    def rows(self, batch: RankingBatch) -> Tensor:
        """Return the tree of each candidate."""
        return batch.rows

    def labels(self, answers: Tensor) -> Labels:
        """Return the logits."""
        return {"scores": answers.half()}

    def check(self, labels: Labels, batch: Any) -> None:
        """Hold labels against the batch that they are of."""
        super().check(labels, batch)
        if labels.get("scores", torch.empty(0)).shape[1:] != (2,):
            raise DistillationError("got labels that are no scores of no and yes; the teacher answers another task")

    def distance(self, answers: Tensor, labels: Labels, batch: RankingBatch) -> Tensor:
        """Return the mean over candidates, or over the lists of each yes and its tree's no."""
        scores = labels["scores"].float()
        if self.ask.taught == "logits":
            return kl_of_classes(answers, scores, self.ask.temperature)
        places, keep = lists_of(batch)
        student, teacher = ((each[:, 1] - each[:, 0])[places] for each in (answers.float(), scores))
        if self.ask.taught == "margin":
            return margin_mse(student, teacher, keep)
        return listwise_kl(student, teacher, keep, self.ask.temperature)


def lists_of(batch: RankingBatch) -> tuple[Tensor, Tensor]:
    """Return one list for each yes of a batch: itself, then every no of its tree.

    Returns:
        ``[lists, places]`` candidates, and which places are taken.
    """
    positive = batch.labels == 1
    rival = (batch.rows[:, None] == batch.rows[None]) & ~positive[None]
    rival = rival[positive]
    order = rival.long().argsort(dim=1, descending=True, stable=True)
    places = torch.cat([positive.nonzero(), order], dim=1)
    keep = torch.cat([torch.ones_like(places[:, :1], dtype=torch.bool), rival.gather(1, order)], dim=1)
    return places, keep


class TokenLesson(Lesson):
    """The most likely tokens at each place of an answer, and the mass of all others.

    Source: Hinton et al. (arXiv 1503.02531). Differs: over the top tokens and one bin for the rest, which is a lower
        bound of the whole divergence at a thousandth of the bytes.
    """

    taught = ("logits",)

    def batch_type(self, task: Any) -> type:
        """Return the class of generation's batches."""
        return GenerationBatch

    def space(self, task: Any, backbone: Backbone) -> str:
        """Return the size of the vocabulary."""
        return f"the next of {len(backbone.tokenizer)} tokens"

    @contextmanager
    def heard(self, task: Any, backbone: Backbone) -> Iterator[tuple[Backbone, list[Tensor]]]:
        """Give a view that keeps the language model's logits."""
        view = _Overheard(backbone)
        yield view, view.said

    def rows(self, batch: GenerationBatch) -> Tensor:
        """Return the tree of each token."""
        return batch.rows

    def labels(self, answers: Tensor) -> Labels:
        """Return the top tokens, their log probabilities and the others' together."""
        ids, logs, tail = top_k_log_probs(answers, min(self.ask.top_k, answers.shape[1]), self.ask.temperature)
        return {"ids": ids.int(), "logs": logs.half(), "tail": tail.half()}

    def check(self, labels: Labels, batch: Any) -> None:
        """Hold labels against the batch that they are of."""
        super().check(labels, batch)
        if set(labels) != {"ids", "logs", "tail"} or labels["ids"].shape != labels["logs"].shape:
            raise DistillationError("got labels that are no tokens with their shares; the teacher answers another task")

    def distance(self, answers: Tensor, labels: Labels, batch: GenerationBatch) -> Tensor:
        """Return the mean over tokens."""
        ids, logs, tail = labels["ids"].long(), labels["logs"].float(), labels["tail"].float()
        return kl_of_top_k(answers, ids, logs, tail, self.ask.temperature)


class VectorLesson(Lesson):
    """The user's vector after each event: the student's is drawn to the teacher's.

    Source: Reimers and Gurevych (arXiv 2004.09813): a student's vectors imitate a teacher's. Differs: unit vectors, for
        retrieval compares directions.
    """

    taught = ("vectors",)

    def batch_type(self, task: Any) -> type:
        """Return the class of the history's batches."""
        return FlatBatch if task.config.granularity == "flat" else PooledBatch

    def space(self, task: Any, backbone: Backbone) -> str:
        """Return the vectors' width, and how many segments batches may name."""
        return f"vectors of {task.config.dim}; {task.material.num_segments} items and searches"

    @contextmanager
    def heard(self, task: Any, backbone: Backbone) -> Iterator[tuple[Backbone, list[Tensor]]]:
        """Listen to the part of the task that reads histories."""
        said: list[Tensor] = []
        hook = task.history.register_forward_hook(_keeping(said))
        try:
            yield backbone, said
        finally:
            hook.remove()

    def rows(self, batch: PooledBatch | FlatBatch) -> Tensor:
        """Return the window of each position that has a target."""
        return batch.rows if isinstance(batch, FlatBatch) else (batch.targets >= 0).nonzero()[:, 0]

    def answers(self, heard: Sequence[Tensor], batch: PooledBatch | FlatBatch) -> Tensor:
        """Return the vectors at positions that have a target."""
        found = torch.cat(list(heard))
        return found if isinstance(batch, FlatBatch) else found[batch.targets >= 0]

    def labels(self, answers: Tensor) -> Labels:
        """Return unit vectors."""
        return {"vectors": F.normalize(answers.float(), dim=1).half()}

    def check(self, labels: Labels, batch: Any) -> None:
        """Hold labels against the batch that they are of."""
        super().check(labels, batch)
        if set(labels) != {"vectors"}:
            raise DistillationError("got labels that are no vectors; the teacher answers another task")

    def distance(self, answers: Tensor, labels: Labels, batch: Any) -> Tensor:
        """Return the mean squared distance of unit vectors."""
        return vector_distance(answers, labels["vectors"].float())


def _keeping(said: list[Tensor]) -> Callable[..., None]:
    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        said.append(output)

    return keep


# By the task that is taught.
LESSONS: dict[str, type[Lesson]] = {"ranking": ScoreLesson, "generation": TokenLesson, "retrieval": VectorLesson}
