"""Zero-shot and few-shot: an event sentence for each alternative, and how likely the language model finds it.

Nothing has to be trained; what is trained, on a few sentences, is the same likelihood. Knows no loop and no report.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.data.candidates import SampledCandidates
from m6rec.data.histories import Histories, Judgements, Queries, Split
from m6rec.data.statistics import ItemStatistics
from m6rec.errors import ConfigError
from m6rec.metrics.ranking import auc
from m6rec.tasks.base import Loss, Material, Task, built_over
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.heads import load_heads, read_names, save_heads
from m6rec.tasks.likelihood import Likelihood, answer_log_probs, ask, likelihoods, pad_answers
from m6rec.tasks.zeroshot.config import ZeroShotConfig
from m6rec.text.batch import TokenBatch, collate
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Record, Renderer
from m6rec.text.tokenize import TextTokenizer

Named = tuple[int | None, Record | str]
"""An item: its place in the catalogue (``None`` = a stranger), and its fields, or its words ready-made."""

# Users whose sentences are in memory at once.
_USERS_AT_ONCE = 32


@dataclass(frozen=True)
class SentenceBatch:
    """Sentences behind their histories, to be learnt.

    Args:
        tokens: a trunk and one branch each.
        answers: ``[batch, tokens]`` bool: what is learnt.
    """

    tokens: TokenBatch
    answers: Bool[Tensor, "batch tokens"]

    def to(self, device: torch.device | str) -> "SentenceBatch":
        """Return the batch on ``device``."""
        return SentenceBatch(self.tokens.to(device), self.answers.to(device))


class ZeroShot(Task):
    """Log-likelihood of an event sentence, by the backbone's own language-model head.

    Source: M6-Rec (2205.08084), sections 3 and 4 (zero-shot: every alternative as a sentence, compared by likelihood);
        the calibration is Holtzman et al., Surface form competition (arXiv 2104.08315), equation 3; few-shot like and
        dislike after TALLRec (arXiv 2305.00447).
    Differs: the paper divides by the length. Here the sum is the default, less half of what the sentence is worth
        without a history: of all that was tried it does best over two logs (BENCHMARKS.md).
    """

    name = "zeroshot"
    Config = ZeroShotConfig
    popularity: Tensor

    def __init__(
        self, config: ZeroShotConfig, catalogue: Catalogue, renderer: Renderer, backbone: Backbone, usual: Record
    ) -> None:
        super().__init__()
        self.config, self.catalogue, self.renderer, self.usual = config, catalogue, renderer, dict(usual)
        self.tokenizer = TextTokenizer(backbone.tokenizer)
        self.prompt = Prompt(config.prompt)
        self.max_tokens = min(backbone.max_tokens, self.prompt.budget_tokens)
        self.register_buffer("popularity", torch.full((len(catalogue),), float("nan"), dtype=torch.float64))
        self._material: Material | None = None
        self._train: Judgements | None = None

    @classmethod
    def build(cls, config: ZeroShotConfig, material: Material, backbone: Backbone) -> "ZeroShot":
        """Return a new task over a dataset.

        Raises:
            ConfigError: a threshold, but the domain has the same words for a no and a yes.
        """
        histories = material.dataset.histories()
        train = histories.before("train")
        catalogue = Catalogue.of(material.dataset, material.renderer, train)
        task = cls(config, catalogue, material.renderer, backbone, usual_event(train))
        task._material = material
        counted = ItemStatistics(histories, catalogue.records, split="train").items(np.arange(len(catalogue)))
        task.popularity.copy_(torch.from_numpy(counted["popularity"]))
        if config.threshold is not None:
            task._check_verdicts()
        return task

    def _check_verdicts(self) -> None:
        no, yes = self.sentences((None, "it"))
        if no.answers == yes.answers:
            raise ConfigError(
                f"got a threshold, but a no and a yes are both told as {' '.join(yes.answers.values())!r}; set "
                f"task.verdicts, or say the value of {self.usual.get('verb', 'an event')!r} in "
                f"the verbs of the data template {self.renderer.domain!r}"
            )

    @property
    def material(self) -> Material:
        """What the task is trained on.

        Raises:
            RunError: a loaded run has none.
        """
        return built_over(self._material)

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.config.shots != 0

    def pairs(self, split: Split) -> Judgements:
        """Return the events of a split as pairs that see what came before: labelled, where there is a threshold.

        Raises:
            DataError: a threshold, but no values.
        """
        if self.config.threshold is not None:
            return self.material.dataset.judgements(split, self.config.threshold)
        histories = self.material.dataset.histories()
        return histories.judged(split, np.ones(histories.num_events, dtype=np.float32))

    def rivals(self, queries: Queries, seed: int) -> SampledCandidates | None:
        """Return whom a query's targets are ranked against; ``None`` = a catalogue small enough to be ranked whole."""
        known = int(np.diff(queries.history.offsets)[queries.users].max(initial=0))
        targets = int(np.diff(queries.target_offsets).max(initial=0))
        few = queries.history.num_items - known - targets < self.config.candidates
        return None if few else SampledCandidates(self.config.candidates, seed)

    def teach(self, pairs: Judgements) -> None:
        """Learn these pairs' sentences, and no others."""
        self._train = pairs

    def examples(self) -> Sequence[int]:
        """Return the numbers of the training sentences."""
        if self._train is None:
            pairs = self.pairs("train")
            fit = np.flatnonzero(pairs.lengths >= self.config.min_events)
            if self.config.shots is not None:
                fit = np.random.default_rng(self.material.seed).permutation(fit)[: self.config.shots]
            self.teach(pairs.take(fit))
        assert self._train is not None
        return range(len(self._train))

    def collate(self, examples: list[int]) -> SentenceBatch:
        """Make one batch of sentences behind their histories."""
        assert self._train is not None
        pairs = self._train.take(np.array(examples))
        layouts = [
            self.prompt.layout(self.renderer, self.user(pairs.history, int(user), int(length)), [said])
            for user, length, said in zip(pairs.users, pairs.lengths, self._said(pairs), strict=True)
        ]
        questions = ask(self.tokenizer, layouts, self.max_tokens)
        return SentenceBatch(
            collate([question.tokens for question in questions], self.tokenizer.pad_id), pad_answers(questions)
        )

    def _said(self, pairs: Judgements) -> Iterator[Candidate]:
        """Yield what each training pair's sentence says: the event itself, or the verdict on it."""
        assert pairs.rows is not None
        for item, label, row in zip(pairs.items.tolist(), pairs.labels, pairs.rows.tolist(), strict=True):
            if self.config.threshold is None:
                record = self.material.dataset.event_record(row)
                event: dict[str, Any] = {name: record[name] for name in ("verb", "value") if name in record}
            else:
                event = self.usual | {"value": self.config.verdicts[int(label)]}
            yield self._sentence((item, self.catalogue.texts[item]), event)

    def loss(self, backbone: Backbone, batch: SentenceBatch) -> Loss:
        """Return the cross entropy of the sentences' words."""
        scores = answer_log_probs(backbone, backbone(batch.tokens), batch.tokens.ids, batch.answers)
        return Loss(-scores.mean(), float(len(scores)))

    def user(self, history: Histories, user: int, length: int | None = None) -> UserText:
        """Return what a user of the dataset did, of which the first ``length`` events may be known."""
        dataset, own = self.material.dataset, history.of(user)
        stop = own.stop if length is None else own.start + length
        events = range(max(own.start, stop - self.config.max_events), stop)
        rows = events if history.rows is None else history.rows[events.start : events.stop].tolist()
        return UserText(profile=dataset.user_record(user), events=[dataset.event_record(row) for row in rows])

    def sentences(self, item: Named) -> list[Candidate]:
        """Return an item's sentences: one of the usual event, or a no and a yes."""
        if self.config.threshold is None:
            return [self._sentence(item, self.usual)]
        return [self._sentence(item, self.usual | {"value": value}) for value in self.config.verdicts]

    def _sentence(self, item: Named, event: Record) -> Candidate:
        place, words = item
        stub, named = self.renderer.event({**event, "item": words})
        known = float(self.popularity[place]) if place is not None and place < len(self.popularity) else float("nan")
        shown = {"popularity": known} if self.config.popularity else {}
        return Candidate(statistics=shown, answers={"stub": stub, "item": named})

    def measured(
        self, backbone: Backbone, users: Sequence[UserText], items: Sequence[Sequence[Named]], alone: bool
    ) -> list[tuple[Likelihood, NDArray[np.float64]]]:
        """Return the likelihood of every user's sentences behind the history and, if asked for, without one.

        Args:
            backbone: tuned or not.
            users: what is known of them; of a stranger, nothing.
            items: each user's candidates; repeats are equal.
            alone: whether sentences are read without a history too; zeros otherwise.
        """
        sentences = [[said for item in own for said in self.sentences(item)] for own in items]
        found = []
        for start in range(0, len(users), _USERS_AT_ONCE):
            stop = start + _USERS_AT_ONCE
            found += self._likelihoods(backbone, users[start:stop], sentences[start:stop])
        if not alone:
            return [(own, np.zeros(len(own.total))) for own in found]
        # A sentence without a history is everybody's: read once.
        different = list({_key(said): said for own in sentences for said in own}.values())
        chunks = [different[start : start + 256] for start in range(0, len(different), 256)]
        totals = Likelihood.joined(self._likelihoods(backbone, [None] * len(chunks), chunks)).total
        known = {_key(said): total for said, total in zip(different, totals, strict=True)}
        return [(own, np.array([known[_key(one)] for one in said])) for own, said in zip(found, sentences, strict=True)]

    def _likelihoods(
        self, backbone: Backbone, users: Sequence[UserText | None], sentences: Sequence[Sequence[Candidate]]
    ) -> list[Likelihood]:
        layouts = []
        for user, candidates in zip(users, sentences, strict=True):
            layout = self.prompt.layout(self.renderer, user, candidates)
            layouts.append(replace(layout, trunk=()) if user is None else layout)
        questions = ask(self.tokenizer, layouts, self.max_tokens)
        return likelihoods(backbone, questions, self.tokenizer.pad_id, self.config.rows_at_once)

    def scores(
        self, backbone: Backbone, users: Sequence[UserText], items: Sequence[Sequence[Named]]
    ) -> list[NDArray[np.float32]]:
        """Return every user's score of every item, as the settings compare likelihoods."""
        measured = self.measured(backbone, users, items, alone=self.config.weight != 0)
        return [self.config.compare(*one).astype(np.float32) for one in measured]

    def rank(
        self, backbone: Backbone, user: UserText, items: Sequence[tuple[int | None, Record]]
    ) -> NDArray[np.float32]:
        """Return scores of candidates; nothing about the user has to be known.

        Args:
            backbone: tuned or not.
            user: profile and events.
            items: each candidate's position in the catalogue (``None`` = a stranger) and fields.
        """
        shown = replace(user, events=user.events[-self.config.max_events :])
        return self.scores(backbone, [shown], [items])[0]

    def measure(
        self, backbone: Backbone, split: Split, at_most: int | None = None, seed: int = 0
    ) -> dict[str, float] | None:
        """Return nats a sentence and perplexity a word of what was done, and AUC where there is a threshold."""
        pairs = self.pairs(split)
        pairs = pairs.take(np.sort(np.random.default_rng(seed).permutation(len(pairs))[:at_most]))
        if not len(pairs):
            return None
        users = [self.user(pairs.history, *moment) for moment in zip(pairs.users, pairs.lengths, strict=True)]
        said = [[one] for one in self._said(pairs)]
        chunks = [slice(start, start + _USERS_AT_ONCE) for start in range(0, len(pairs), _USERS_AT_ONCE)]
        found = Likelihood.joined([own for c in chunks for own in self._likelihoods(backbone, users[c], said[c])])
        figures = {
            "nats": float(-found.total.mean()),
            "perplexity": float(np.exp(-found.total.sum() / found.tokens.sum())),
        }
        if self.config.threshold is not None:
            figures["auc"] = auc(pairs.labels, ZeroShotScorer(self, backbone).score_pairs(pairs))
        return figures

    def save(self, folder: Path) -> None:
        """Write catalogue, popularity and the usual event."""
        save_heads(self, folder, {"usual": self.usual})
        self.catalogue.save(folder / "catalogue")

    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote into a task over the same dataset."""
        load_heads(self, folder)

    @classmethod
    def load(cls, config: ZeroShotConfig, folder: Path, renderer: Renderer, backbone: Backbone) -> "ZeroShot":
        """Read what ``save`` wrote."""
        catalogue = Catalogue.load(folder / "catalogue", encoded=False)
        task = cls(config, catalogue, renderer, backbone, read_names(folder)["usual"])
        load_heads(task, folder)
        return task


class ZeroShotScorer:
    """Scores candidates, pairs or the whole catalogue for evaluation.

    Args:
        task: over the dataset that is evaluated.
        backbone: tuned or not.
        name: row name in reports.
    """

    def __init__(self, task: ZeroShot, backbone: Backbone, name: str = "ours") -> None:
        self.task, self.backbone, self.name = task, backbone, name

    def score_candidates(self, queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return ``[num_queries, n]`` scores of candidates; ``-1`` = none, scored minus infinity."""
        users = [self.task.user(queries.history, int(user)) for user in queries.users]
        items = [[self._named(item) for item in row if item >= 0] for row in candidates.tolist()]
        scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
        scores[candidates >= 0] = np.concatenate(self.task.scores(self.backbone, users, items))
        return scores

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]`` scores of the whole catalogue."""
        everything = np.arange(queries.history.num_items, dtype=np.int32)
        return self.score_candidates(queries, np.broadcast_to(everything, (len(queries), len(everything))))

    def score_pairs(self, pairs: Judgements) -> NDArray[np.float32]:
        """Return ``[num_pairs]`` probabilities of a yes against a no; pairs of one moment are read together."""
        moments = np.stack([pairs.users.astype(np.int64), pairs.lengths], axis=1)
        different, owners = np.unique(moments, axis=0, return_inverse=True)
        users = [self.task.user(pairs.history, user, length) for user, length in different.tolist()]
        rows = [np.flatnonzero(owners == number) for number in range(len(users))]
        items = [[self._named(item) for item in pairs.items[own].tolist()] for own in rows]
        found = np.empty(len(pairs), dtype=np.float32)
        found[np.concatenate(rows)] = np.concatenate(self.task.scores(self.backbone, users, items))
        probabilities: NDArray[np.float32] = torch.from_numpy(found).sigmoid().numpy()
        return probabilities

    def _named(self, item: int) -> Named:
        return item, self.task.catalogue.texts[item]


def usual_event(train: Histories) -> dict[str, Any]:
    """Return the log's most frequent verb, and the most frequent value with it: what a sentence says was done."""
    chosen = train.items >= 0
    verbs = train.verbs[chosen] if train.verbs is not None else np.full(int(chosen.sum()), -1)
    if not len(verbs):
        return {}
    kinds, counts = np.unique(verbs, return_counts=True)
    verb = int(kinds[counts.argmax()])
    event: dict[str, Any] = {"verb": train.verb_names[verb]} if verb >= 0 else {}
    if train.values is not None:
        values, counts = np.unique(train.values[chosen][verbs == verb], return_counts=True)
        known = ~np.isnan(values)
        if known.any():
            event["value"] = float(values[known][counts[known].argmax()])
    return event


def _key(said: Candidate) -> tuple[object, ...]:
    return (*said.answers.values(), *map(str, said.statistics.values()))
