"""Cold items as ranking: every candidate is read under a condition, its own text, by a backbone that takes any.

The task is the ranking task in all else: training, evaluation and serving do not learn of it. Knows no loop, no report,
and no tuner but for what a conditioned backbone promises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.backbones.conditions import Conditions, condition_size, given
from m6rec.coldstart.closed_form import ClosedForm
from m6rec.coldstart.item_phases import METRICS, PHASES, ItemPhases, Phase, PhaseConfig, Rows
from m6rec.coldstart.traits import Attributes
from m6rec.data.histories import Histories, Judgements, Split
from m6rec.data.statistics import ItemStatistics, StatisticsConfig
from m6rec.errors import ConfigError, DataError
from m6rec.nn import pooling
from m6rec.tasks.base import Loss, Material
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.encoding import SegmentEncoder
from m6rec.tasks.ranking.data import every_event, with_sampled_negatives
from m6rec.tasks.ranking.task import Placed, Ranking, RankingConfig
from m6rec.tasks.trees import slates
from m6rec.text.batch import TokenBatch
from m6rec.text.prompt import UserText
from m6rec.text.render import Renderer

HeldOut = Literal["train", "valid", "test"]
COLUMNS = 64
"""Most attribute values that the closed form reads."""


@dataclass(frozen=True)
class ColdItemsConfig(RankingConfig):
    """Settings of the cold-item task: the ranking task's, and how items are divided."""

    phases: PhaseConfig | None = field(default_factory=PhaseConfig)
    """How items are divided into those that are learnt from and those held out, and what is known of these in each
    phase; null = all are learnt from and the dataset's own split is evaluated, as for a run that goes into service."""


class TextConditions(SegmentEncoder):
    """Reads texts without control tokens: a frozen backbone's mean state, which no training moves."""

    def batch(self, backbone: Backbone, texts: Sequence[Sequence[int]]) -> TokenBatch:
        """Pad token lists into one batch; a text without a word is one column of padding."""
        width = max(1, *(len(text[: self.max_tokens]) for text in texts))
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        keep = torch.zeros(len(texts), width, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text[: self.max_tokens], dtype=torch.long)
            keep[row, : len(text)] = True
        positions, zero = torch.arange(width).expand(len(texts), width).contiguous(), torch.zeros_like(ids)
        return TokenBatch(ids=ids, keep=keep, positions=positions, blocks=zero, branches=zero)

    def read(self, backbone: Backbone, batch: TokenBatch) -> Float[Tensor, "texts hidden"]:
        """Return the mean state of each text, zeros for one without a word."""
        states = backbone(batch).float()
        return pooling.mean(states, batch.keep).masked_fill(~batch.keep.any(1, keepdim=True), 0.0)


class ColdItems(Ranking):
    """Probability of a yes for a candidate that may be new, read under the condition that its text makes.

    With ``phases`` a share of the items is never learnt from; ``measure`` gives the figures of every phase, and the
    pairs that are evaluated are those of the first, cold. An item without text is read under no condition; whatever
    joins the catalogue later is conditioned like the rest, for nothing is kept by item.

    Source: after EmerG (arXiv 2407.10112): what depends on an item is made by a hypernetwork from what is known of it.
    Differs: on a language model, whose layers its text modulates (FiLM); nothing is adapted when judgements of a new
        item arrive, for the statistics in the prompt say them.
    """

    name = "cold-items"
    Config = ColdItemsConfig
    config: ColdItemsConfig
    vectors: Tensor

    def __init__(self, config: ColdItemsConfig, catalogue: Catalogue, renderer: Renderer, backbone: Backbone) -> None:
        super().__init__(config, catalogue, renderer, backbone)
        size = condition_size(backbone)
        if size not in (None, backbone.hidden_size):
            raise ConfigError(
                f"tuner.size: got {size}, expected {backbone.hidden_size}, for the condition is the backbone's own "
                "state of an item's text; leave it out"
            )
        self.conditioned = size is not None
        self.encoder = TextConditions()
        self.register_buffer("vectors", torch.zeros(len(catalogue) if self.conditioned else 0, backbone.hidden_size))
        self._divided: Divided | None = None

    @classmethod
    def build(cls, config: Any, material: Material, backbone: Backbone) -> "ColdItems":
        """Return a new task over a dataset; reads the catalogue's texts once.

        Raises:
            DataError: as :meth:`Ranking.build`; too few items with enough judgements, or no times.
        """
        task = super().build(config, material, backbone)
        assert isinstance(task, ColdItems)
        if task.conditioned:
            task.vectors.copy_(task.encode(backbone, task.catalogue.texts))
        return task

    def encode(self, backbone: Backbone, texts: Sequence[str]) -> Float[Tensor, "texts hidden"]:
        """Return the conditions that items' texts make."""
        return self.encoder.encode(backbone, self.tokenizer.texts(texts), "items")

    @property
    def divided(self) -> "Divided":
        """Return the judgements, divided into items that are learnt from and held-out ones."""
        assert self.config.phases is not None
        if self._divided is None:
            material = self.material
            everything = all_judgements(material, self.config)
            self._divided = Divided.of(everything, self.config.phases, material.seed)
        return self._divided

    def pairs(self, split: HeldOut) -> Judgements:
        """Return labelled pairs: of the items that are learnt from, or a part's queries, nothing of whose items counts.

        Without phases, those of the dataset's own split.
        """
        return super().pairs(split) if self.config.phases is None else self.placed(self.divided.pairs(split))

    def statistics_for(self, split: HeldOut) -> ItemStatistics:
        """Return the numbers that may be known in the phase ``cold`` (or, without phases, before the split)."""
        return super().statistics_for(split) if self.config.phases is None else self._counted("cold", split)

    def _counted(self, phase: Phase, split: HeldOut) -> ItemStatistics:
        name = f"{split} {phase}"
        if name not in self._statistics:
            config = StatisticsConfig(threshold=self.config.threshold, smoothing=self.config.smoothing)
            histories, judged = self.divided.known(split, phase)
            is_shown = self.material.dataset.impressions is not None
            self._statistics[name] = ItemStatistics(
                histories, self.catalogue.records, config, "train", judged if is_shown else None
            )
        return self._statistics[name]

    def collate(self, examples: list[Mapping[str, Any]]) -> Any:
        """Make one batch of trees, with the item of each branch."""
        items = [torch.tensor(row["items"], dtype=torch.int64) for row in examples]
        padded = torch.nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=-1)
        return {"trees": super().collate(examples), "items": padded}

    def loss(self, backbone: Backbone, batch: Any) -> Loss:
        """Return the ranking loss, every branch under its item's condition."""
        return super().loss(self._given(backbone, batch["items"]), batch["trees"])

    def _given(self, backbone: Backbone, items: Tensor) -> Backbone:
        """Return the backbone given the conditions of ``[rows, branches]`` items of the catalogue; -1 = none."""
        if not self.conditioned:
            return backbone
        distinct, numbers = items.clamp(min=0).unique(return_inverse=True)
        vectors = self.vectors[distinct]
        return given(backbone, _conditions(vectors, numbers.masked_fill(items < 0, -1)))

    def score_pairs(
        self, backbone: Backbone, pairs: Judgements, split: Literal["valid", "test"]
    ) -> NDArray[np.float32]:
        """Return ``[num_pairs]`` probabilities of a yes from what may be known when ``split`` is predicted."""
        groups = iter(slates(pairs, self.config.max_events, self.config.max_branches))

        def answer(tree: Any, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
            items = torch.from_numpy(pairs.items[next(groups).pairs].astype(np.int64))
            return self._probabilities(self._given(backbone, items[None].to(self.vectors.device)), [tree], [numbers])

        return self.score_trees(pairs, split, answer)

    def score_phase(
        self, backbone: Backbone, split: Literal["valid", "test"], phase: Phase, pairs: Judgements | None = None
    ) -> NDArray[np.float32]:
        """Return probabilities of a yes for a part's queries in a phase.

        Args:
            backbone: tuned.
            split: the part.
            phase: what is known of its items.
            pairs: some of the queries; default: all.
        """
        self._statistics[f"{split} cold"], kept = self._counted(phase, split), self._counted("cold", split)
        try:
            return self.score_pairs(backbone, self.pairs(split) if pairs is None else pairs, split)
        finally:
            self._statistics[f"{split} cold"] = kept

    def measure(
        self, backbone: Backbone, split: Split, at_most: int | None = None, seed: int = 0
    ) -> dict[str, float] | None:
        """Return every metric in every phase, ours and the closed form's, e.g. ``closed_form_auc[warm-a]``.

        A figure that is not defined (all labels are equal) is left out.

        Args:
            backbone: tuned.
            split: ``"valid"`` or ``"test"``.
            at_most: how many pairs are drawn, of whole items; ``None`` = all.
            seed: of the draw.
        """
        if self.config.phases is None or split == "train":
            return None
        divided = self.divided
        figures: dict[str, float] = {}
        chosen, expected = divided.some(split, at_most, seed), divided.expected(split, self.catalogue.records)
        for phase in PHASES:
            scores = self.score_phase(backbone, split, phase, divided.pairs(split).take(chosen))
            for prefix, found in (("", scores), ("closed_form_", expected(phase)[chosen])):
                judged = divided.phases.judge(split, found, chosen)
                figures |= {f"{prefix}{metric}[{phase}]": judged[metric] for metric in METRICS}
        return {name: value for name, value in figures.items() if not np.isnan(value)}

    def rank_many(
        self, backbone: Backbone, requests: Sequence[tuple[UserText, Sequence[Placed]]], max_branches: int | None = None
    ) -> list[NDArray[np.float32]]:
        """Return the probabilities of several requests' candidates; strangers are read by their text too."""
        if not self.conditioned:
            return super().rank_many(backbone, requests, max_branches)
        size, scores = max_branches or self.config.max_branches, []
        for user, items in requests:
            vectors = self._vectors_of(backbone, items)
            found = [np.zeros(0, dtype=np.float32)]
            for start in range(0, len(items), size):
                some = vectors[start : start + size]
                view = given(backbone, _conditions(some, torch.arange(len(some), device=some.device)[None]))
                found += super().rank_many(view, [(user, items[start : start + size])], size)
            scores.append(np.concatenate(found))
        return scores

    def _vectors_of(self, backbone: Backbone, items: Sequence[Placed]) -> Float[Tensor, "items hidden"]:
        """Return candidates' conditions: of what training's catalogue holds as they were kept, of others read now."""
        known = [place if place is not None and place < len(self.vectors) else -1 for place, _ in items]
        strangers = [row for row, place in enumerate(known) if place < 0]
        places = torch.tensor(known, dtype=torch.int64, device=self.vectors.device)
        vectors = self.vectors[places.clamp(min=0)].clone()
        if strangers:
            texts = ["" if not items[row][1] else self.renderer.item(items[row][1]) for row in strangers]
            vectors[torch.tensor(strangers)] = self.encode(backbone, texts).to(vectors)
        return vectors

    @classmethod
    def load(cls, config: Any, folder: Path, renderer: Renderer, backbone: Backbone) -> "ColdItems":
        """Read what ``save`` wrote."""
        task = super().load(config, folder, renderer, backbone)
        assert isinstance(task, ColdItems)
        return task


def _conditions(vectors: Float[Tensor, "conditions size"], numbers: Tensor) -> Conditions:
    """Return conditions of branches; a text without a word is none."""
    silent = ~vectors.any(1)
    is_none = (numbers < 0) | silent[numbers.clamp(min=0)]
    return Conditions.of_branches(vectors, numbers.masked_fill(is_none, -1))


@dataclass(frozen=True)
class Divided:
    """Judgements of a log whose items are divided.

    Args:
        phases: what each judgement is for, in time order.
        judgements: the same judgements in the same order; their history is all events of items that are learnt from.
        histories: all events, whatever the dataset's own split.
    """

    phases: ItemPhases
    judgements: Judgements
    histories: Histories

    @classmethod
    def of(cls, everything: Judgements, config: PhaseConfig, seed: int) -> "Divided":
        """Divide the items of all judgements of a log.

        Raises:
            DataError: too few items with enough judgements, or judgements of unknown time.
        """
        if everything.times is None:
            raise DataError("got a log without times, expected them: a new item's first judgements are its warm-up")
        ordered = everything.take(np.argsort(everything.times, kind="stable"))
        columns = (ordered.users.astype(np.int64), ordered.items.astype(np.int64))
        phases = ItemPhases.of(Rows(*columns, ordered.labels, ordered.labels), config, seed)
        history = everything.history
        is_learnt = np.ones(history.num_items, dtype=bool)
        is_learnt[np.r_[phases.items["valid"], phases.items["test"]]] = False
        kept = np.where(history.items >= 0, is_learnt[history.items], True)
        before = np.r_[0, np.cumsum(kept)]
        begins = history.offsets[ordered.users]
        lengths = before[begins + ordered.lengths] - before[begins]
        return cls(phases, replace(ordered, history=history.select(kept), lengths=lengths), history)

    def pairs(self, split: HeldOut) -> Judgements:
        """Return the judgements that are learnt from, or the queries of a part."""
        return self.judgements.take(self.phases.train if split == "train" else self.phases.queries(split))

    def known(self, split: HeldOut, phase: Phase) -> tuple[Histories, Judgements]:
        """Return the events and judgements that are known when a part is asked in a phase."""
        if split == "train":
            return self.judgements.history, self.pairs("train")
        shots = self.phases.known(split, phase)
        history, judged = self.histories, self.judgements
        own = judged.take(shots)
        held = np.isin(history.items, np.r_[self.phases.items["valid"], self.phases.items["test"]])
        pairs = history.users.astype(np.int64) * history.num_items + history.items
        shown = np.isin(pairs, own.users.astype(np.int64) * history.num_items + own.items)
        return history.select(~held | shown), judged.take(np.sort(np.r_[self.phases.train, shots]))

    def expected(self, split: HeldOut, records: Sequence[Mapping[str, Any]]) -> Callable[[Phase], NDArray[np.float64]]:
        """Return phase -> what the closed form expects of a part's queries.

        Args:
            split: the part.
            records: of all items, whose attributes say what a new one may be worth.
        """
        attributes = Attributes.of(records, COLUMNS)(records).numpy()
        train, asked = (self.phases.rows.take(rows) for rows in (self.phases.train, self.phases.queries(split)))
        form = ClosedForm.fit(train.users, train.items, train.values, self.histories.num_users, attributes)
        priors = form.priors(attributes)

        def scores(phase: Phase) -> NDArray[np.float64]:
            known = self.phases.rows.take(self.phases.known(split, phase))
            levels = form.item_levels(known.users, known.items, known.values, priors)
            return form.scores(asked.users, asked.items, levels)

        return scores

    def some(self, split: HeldOut, at_most: int | None, seed: int) -> NDArray[np.int64]:
        """Return numbers of a part's queries: of whole items, drawn until there are enough."""
        items = self.pairs(split).items
        names, counts = np.unique(items, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(names))
        enough = np.cumsum(counts[order]) - counts[order] < (at_most or len(items))
        return np.flatnonzero(np.isin(items, names[order[enough]]))


def all_judgements(material: Material, config: RankingConfig) -> Judgements:
    """Return every judgement of a dataset, each seeing the user's events before it, whatever the dataset's split.

    Raises:
        DataError: a threshold for a log without ratings.
    """
    dataset, histories = material.dataset, material.dataset.histories()
    whole = replace(histories, splits=np.zeros_like(histories.splits))
    if dataset.impressions is not None:
        parts = [dataset.judgements(split) for split in ("train", "valid", "test")]
        return _over(whole, parts)
    if config.threshold is not None:
        if histories.values is None:
            raise DataError(f"{dataset.folder} has no ratings, which a threshold is for; leave task.threshold out")
        labels = np.where(np.isnan(histories.values), np.nan, histories.values >= config.threshold)
        return whole.judged("train", labels.astype(np.float32))
    return with_sampled_negatives(every_event(whole), config.num_negatives, material.seed)


def _over(history: Histories, parts: Sequence[Judgements]) -> Judgements:
    """Return impressions of all splits over one history; each sees what its own split's did."""
    names = ("users", "items", "labels", "lengths")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    times = [part.times for part in parts]
    known = [time for time in times if time is not None]
    return Judgements(history, **columns, times=np.concatenate(known) if len(known) == len(times) else None)
