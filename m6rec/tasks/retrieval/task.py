"""Retrieval: a user vector, an item vector, and the nearest items of the whole catalogue.

Knows no loop, no index and no report.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.data.histories import Queries
from m6rec.nn.losses import catalogue_cross_entropy, contrastive
from m6rec.nn.towers import ItemTower, Whitening, own_history_pairs
from m6rec.tasks.base import Loss, Material
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.encoding import SegmentEncoder
from m6rec.tasks.heads import read_tensors
from m6rec.tasks.retrieval.base import Record, Retriever
from m6rec.tasks.retrieval.blend import choose_blend
from m6rec.tasks.retrieval.config import RetrievalConfig
from m6rec.tasks.retrieval.data import RetrievalScorer, Segments, excluded_columns
from m6rec.tasks.retrieval.history_flat import FlatBatch, FlatHistory, HistoryReader
from m6rec.tasks.retrieval.history_pooled import PooledBatch, PooledHistory, collate_windows
from m6rec.tasks.retrieval.item_space import ItemSpace, last_segments
from m6rec.tasks.retrieval.neighbours import Kin, Links
from m6rec.tasks.retrieval.windows import Window
from m6rec.text.prompt import Prompt
from m6rec.text.render import Renderer

# Users kept with a run, to calibrate new items on.
NUM_PROBES = 256


class Retrieval(Retriever):
    """Find the next items in the whole catalogue: user and item vectors in one space.

    Source: M6-Rec (2205.08084), section 3: [EOS'] -> W_u and [EOS] -> W_i, 128-d, L2 norm, InfoNCE at temperature 0.07.
    Differs: a loss at every position, the whole catalogue as negatives where it fits, and an optional id residual; each
        is a setting, and EXPERIMENTS.md says what each gives.
    """

    name = "retrieval"
    Config = RetrievalConfig
    prior: Tensor
    blend: Tensor
    probes: Tensor
    probe_items: Tensor
    at_training: Tensor

    def __init__(
        self,
        config: RetrievalConfig,
        catalogue: Catalogue,
        renderer: Renderer,
        backbone: Backbone,
        verb_names: Sequence[str] = (),
    ) -> None:
        super().__init__(config, catalogue, renderer, backbone, verb_names)
        self.encoder = SegmentEncoder(config.item_region, config.item_readout, config.item_layers, config.item_tokens)
        width = min(config.whiten, backbone.hidden_size) or backbone.hidden_size
        self.whitening = Whitening(backbone.hidden_size, width) if config.whiten else nn.Identity()
        num_ids = catalogue.num_trained if config.id_residual else 0
        self.tower = ItemTower(width, config.tower_width, config.dim, num_ids, config.tower_dropout, config.id_dropout)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(config.temperature)), requires_grad=config.learn_temperature
        )
        self.history = self._history(backbone)
        self.register_buffer("prior", torch.zeros(config.dim))
        self.register_buffer("blend", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("probes", torch.zeros(NUM_PROBES, config.dim))
        self.register_buffer("probe_items", torch.full((NUM_PROBES, config.neighbours.window), -1))
        # Items at training time, and the share of validation's events that went to those without training events.
        self.register_buffer("at_training", torch.tensor([len(catalogue), 0.0], dtype=torch.float64))
        self.links: Links | None = None
        self._validation: Queries | None = None

    def _history(self, backbone: Backbone) -> PooledHistory | FlatHistory:
        config = self.config
        if config.granularity == "pooled":
            return PooledHistory(config.pooled, config.dim, config.max_events, len(self.verb_names))
        reader = HistoryReader(Prompt(config.prompt), self.renderer, self.tokenizer, backbone.max_tokens)
        return FlatHistory(backbone.hidden_size, config.dim, reader)

    @classmethod
    def build(cls, config: RetrievalConfig, material: Material, backbone: Backbone) -> Self:
        """Return a new task over a dataset, its links counted."""
        task = super().build(config, material, backbone)
        task.links = Links.count(task.material.train, config.neighbours.window)
        task._validation = material.dataset.histories().queries("valid")
        return task

    @property
    def trains_backbone(self) -> bool:
        """Whether the loss reaches the backbone at all; cached vectors cut it off."""
        return self.config.granularity == "flat" or self.config.item_vectors == "step"

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Encode items and searches: once, or before every epoch with ``item_vectors=epoch``."""
        if self.config.item_vectors == "epoch":
            self.catalogue.vectors = self.material.search_vectors = None
        self.encode(backbone)
        if epoch == 0 and isinstance(self.whitening, Whitening):
            assert self.catalogue.vectors is not None
            self.whitening.fit(self.catalogue.vectors[torch.from_numpy(self.catalogue.ids >= 0)])

    def encode(self, backbone: Backbone) -> None:
        """Encode the texts of items and searches that have no vector yet."""
        material = self.material
        searches = [self.renderer.query(words) for words in material.table.searches]
        items, queries = self.tokenizer.texts(self.catalogue.texts), self.tokenizer.texts(searches)
        material.tokens = items + queries
        if self.catalogue.vectors is None:
            self.catalogue.vectors = self.encoder.encode(backbone, items, "items")
        if material.search_vectors is None:
            material.search_vectors = self.encoder.encode(backbone, queries, "searches")

    def collate(self, examples: list[Window]) -> PooledBatch | FlatBatch:
        """Make one batch of windows, every event but the first a target."""
        num_items = self.material.table.num_items
        if isinstance(self.history, FlatHistory):
            return self.history.reader.batch(examples, self.material.record, num_items, predict=True)
        return collate_windows(examples, num_items, predict=True)

    def loss(self, backbone: Backbone, batch: PooledBatch | FlatBatch) -> Loss:
        """Return the contrastive loss over every position that has a target."""
        columns = self.columns(batch)
        vectors = self.vectors(backbone, columns)
        states, targets, pairs = self.positions(backbone, batch, vectors, columns)
        users = F.normalize(states.float(), dim=1) * torch.exp(-self.log_temperature)
        num_items = int((columns < self.material.table.num_items).sum())
        items = F.normalize(vectors[:num_items].float(), dim=1)
        places = torch.searchsorted(columns, targets)
        if self.config.negatives == "catalogue":
            value = catalogue_cross_entropy(users, items, places, pairs)
        else:
            value = contrastive(
                users,
                items,
                places,
                excluded_columns(pairs, columns[:num_items], len(users)),
                self.log_q(columns[:num_items]),
            )
        return Loss(value, float(len(targets)), {"temperature": float(torch.exp(self.log_temperature.detach()))})

    def columns(self, batch: PooledBatch | FlatBatch) -> Int[Tensor, " columns"]:
        """Return the segments that this step needs a vector of, sorted."""
        total = self.material.num_segments
        device = batch.targets.device
        if self.config.negatives == "catalogue":
            return torch.arange(total, device=device)
        wanted = [batch.targets[batch.targets >= 0]]
        if isinstance(batch, PooledBatch):
            wanted.append(batch.segments[batch.keep])
        if self.config.num_negatives:
            wanted.append(torch.randint(self.material.table.num_items, (self.config.num_negatives,), device=device))
        return torch.unique(torch.cat(wanted))

    def vectors(self, backbone: Backbone, columns: Int[Tensor, " columns"]) -> Float[Tensor, "columns dim"]:
        """Return the tower's vector of each column (not normalised)."""
        material = self.material
        if self.config.item_vectors == "step":
            assert material.tokens is not None
            tokens = self.encoder.batch(backbone, [material.tokens[column] for column in columns.tolist()])
            texts = self.encoder.read(backbone, tokens.to(columns.device))
        else:
            texts = self._all_texts()[columns.cpu()].to(columns.device)
        return self.tower(self.whitening(texts), self._ids()[columns.cpu()].to(columns.device))

    def _all_texts(self) -> Float[Tensor, "segments hidden"]:
        assert self.catalogue.vectors is not None
        searches = self.material.search_vectors
        return self.catalogue.vectors if searches is None else torch.cat([self.catalogue.vectors, searches])

    def _ids(self) -> Int[Tensor, " segments"]:
        ids = torch.from_numpy(self.catalogue.ids)
        return F.pad(ids, (0, self.material.num_segments - len(ids)), value=-1)

    def positions(
        self, backbone: Backbone, batch: PooledBatch | FlatBatch, vectors: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return states, targets and (position, item) pairs that are no negatives, one row a target."""
        num_items = self.material.table.num_items
        if isinstance(self.history, FlatHistory) and isinstance(batch, FlatBatch):
            return self.history(backbone, batch), batch.targets, batch.met(num_items)
        assert isinstance(self.history, PooledHistory)
        assert isinstance(batch, PooledBatch)
        states = self.history(batch, vectors, torch.searchsorted(columns, batch.segments))
        wanted = batch.targets >= 0
        inputs = torch.where(batch.keep & (batch.segments < num_items), batch.segments, -1)
        pairs = own_history_pairs(inputs, batch.targets, wanted)
        return states[wanted], batch.targets[wanted], pairs

    @torch.no_grad()
    def finish(self, backbone: Backbone) -> None:
        """Set what stands for a user without any history, and how much the counted terms weigh."""
        if self.trains_backbone:
            self.catalogue.vectors = self.material.search_vectors = None
        self.encode(backbone)
        self._probe(backbone)
        config = self.config.neighbours
        if self._validation is not None:
            idle = self.catalogue.ids[self._validation.targets] < 0
            self.at_training[1] = idle.sum() / max(1, len(idle))
            scorer = self.scorer(backbone)
            fixed = (config.cooccurrence, config.text)
            chosen = choose_blend(self._validation, scorer.parts, fixed, seed=0)
            self.blend.copy_(torch.tensor(chosen, dtype=self.blend.dtype))

    def _probe(self, backbone: Backbone) -> None:
        """Keep a sample of users: their mean stands for a user without history, their scores calibrate new items."""
        windows, num_items = self.material.windows, self.material.table.num_items
        if not len(windows):
            return
        chosen = np.resize(np.random.default_rng(0).permutation(len(windows)), NUM_PROBES)
        sample = [windows[int(index)] for index in chosen]
        states = self.states(backbone, sample, self.segments())
        self.prior.copy_(F.normalize(states.mean(0), dim=0))
        self.probes.copy_(states)
        items = [item.segments[item.segments < num_items] for item in sample]
        self.probe_items.copy_(last_segments(items, self.config.neighbours.window))

    @torch.no_grad()
    def segments(self, texts: Tensor | None = None, ids: Tensor | None = None) -> Segments:
        """Return the vectors of segments (default: all of the dataset's), for inference.

        Args:
            texts: ``[segments, hidden]`` the backbone's vectors.
            ids: ``[segments]`` number of the residual, -1 = none.
        """
        self.eval()
        device = self.log_temperature.device
        white = self.whitening((self._all_texts() if texts is None else texts).to(device))
        ids = (self._ids() if ids is None else ids).to(device)
        return Segments(self.tower(white, ids).float(), F.normalize(white.float(), dim=1), ids)

    @torch.no_grad()
    def space(self) -> ItemSpace:
        """Return the catalogue for an index, with what training has learnt and counted.

        An item without training events adds the residuals of the trained items that read most like it.
        """
        assert self.catalogue.vectors is not None
        assert self.links is not None
        new = self.catalogue.ids < 0
        items = self.segments(self.catalogue.vectors, torch.from_numpy(self.catalogue.ids))
        kin = Kin.find(items.texts.cpu(), ~new, self.config.neighbours.kin)
        if self.tower.residual is not None and kin.parents.size:
            residuals = self.tower.residual(items.ids[torch.from_numpy(kin.parents)])
            shares = torch.from_numpy(kin.shares).to(residuals.device)
            items.towers[torch.from_numpy(kin.items)] += (residuals * shares[..., None]).sum(1)
        space = ItemSpace(
            learnt=F.normalize(items.towers, dim=1),
            texts=items.texts,
            boost=torch.zeros_like(items.towers[:, 0]),
            kin=kin,
            links=self.links,
            temperature=float(torch.exp(self.log_temperature)),
            cooccurrence=float(self.blend[0]),
            text=float(self.blend[1]),
            config=self.config.neighbours,
        )
        return replace(space, boost=space.boosted(self._newcomers(new), ~new, self.probes, self.probe_items))

    def _newcomers(self, new: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], float]]:
        """Return groups of items without training events, and the share of next events that each is expected to get.

        What stood idle in training goes on as validation saw it; what came later gets its share of the catalogue.
        """
        offered = new & self.catalogue.offered
        if (given := self.config.neighbours.new_share) is not None:
            return [(offered, given)]
        later = offered & (np.arange(len(new)) >= int(self.at_training[0]))
        share = float(later.sum() / max(1, self.catalogue.offered.sum()))
        return [(offered & ~later, float(self.at_training[1])), (later, share)]

    @torch.no_grad()
    def states(
        self,
        backbone: Backbone,
        windows: Sequence[Window],
        segments: Segments,
        records: Callable[[int], Any] | None = None,
    ) -> Float[Tensor, "windows dim"]:
        """Return normalised user vectors after each window's last event; an empty window gives the prior."""
        self.eval()
        device = segments.towers.device
        result = self.prior.to(device).expand(len(windows), -1).clone()
        full = [number for number, item in enumerate(windows) if len(item)]
        if not full:
            return result
        chosen = [windows[number] for number in full]
        total = len(segments.towers)
        if isinstance(self.history, FlatHistory):
            batch = self.history.reader.batch(chosen, records or self.material.record, total, predict=False)
            states = self.history(backbone, batch.to(device))
        else:
            pooled = collate_windows(chosen, total, predict=False).to(device)
            last = pooled.keep.sum(1) - 1
            rows = torch.arange(len(chosen), device=device)
            states = self.history(pooled, segments.towers, pooled.segments)[rows, last]
        result[torch.tensor(full, device=device)] = F.normalize(states.float(), dim=1)
        return result

    @torch.no_grad()
    def users(
        self,
        backbone: Backbone,
        space: ItemSpace,
        windows: Sequence[Window],
        places: Sequence[int | None],
        records: Sequence[Record],
    ) -> Float[Tensor, "users total"]:
        """Return the users' vectors, for an index."""
        segments = self.read_events(places, records, backbone)
        states = self.states(backbone, windows, segments, records.__getitem__)
        last = last_segments([window.segments for window in windows], space.config.window)
        return space.users(states, space.profiles(last.to(states.device), segments.texts))

    @torch.no_grad()
    def read_events(self, places: Sequence[int | None], records: Sequence[Record], backbone: Backbone) -> Segments:
        """Return the vectors of events: of known items by position, of strangers by their words."""
        assert self.catalogue.vectors is not None
        known = torch.tensor([place is not None for place in places], dtype=torch.bool)
        rows = torch.tensor([place for place in places if place is not None], dtype=torch.long)
        vectors = self.catalogue.vectors.new_empty(len(places), self.catalogue.vectors.shape[1])
        vectors[known] = self.catalogue.vectors[rows]
        if not known.all():
            strangers = [record for record, place in zip(records, places, strict=True) if place is None]
            vectors[~known] = self.read_items(backbone, [self.renderer.event(record)[1] for record in strangers])
        ids = torch.full((len(places),), -1)
        ids[known] = torch.from_numpy(self.catalogue.ids)[rows]
        return self.segments(vectors, ids)

    def read_items(self, backbone: Backbone, texts: Sequence[str]) -> Float[Tensor, "items hidden"]:
        """Return the backbone's vectors of texts."""
        return self.encoder.encode(backbone, self.tokenizer.texts(texts))

    def scorer(self, backbone: Backbone, name: str = "ours") -> RetrievalScorer:
        """Return the task as evaluation calls it."""
        return RetrievalScorer(self, backbone, name)

    def save(self, folder: Path) -> None:
        """Write heads, catalogue, links and the names that inference needs."""
        super().save(folder)
        assert self.links is not None
        save_file(self.links.tensors(), folder / "links.safetensors")

    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote into a task over the same dataset."""
        super().restore(folder, backbone)
        self.encode(backbone)

    @classmethod
    def load(cls, config: RetrievalConfig, folder: Path, renderer: Renderer, backbone: Backbone) -> Self:
        """Read what ``save`` wrote."""
        task = super().load(config, folder, renderer, backbone)
        task.links = Links.of(read_tensors(folder / "links.safetensors"))
        return task
