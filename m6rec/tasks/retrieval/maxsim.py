"""Retrieval read out token by token: late interaction by MaxSim. Knows no loop, no index and no report."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.data.histories import Queries
from m6rec.errors import ConfigError
from m6rec.nn.losses import contrastive_over
from m6rec.tasks.base import Loss
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.encoding import Region, SegmentEncoder
from m6rec.tasks.retrieval.base import Record, Retriever
from m6rec.tasks.retrieval.data import QueryWindows, excluded_columns
from m6rec.tasks.retrieval.history_flat import FlatBatch, HistoryReader
from m6rec.tasks.retrieval.token_space import TokenSpace
from m6rec.tasks.retrieval.token_vectors import TokenReadout, mean_maxsim, seen_tokens
from m6rec.tasks.retrieval.windows import Window
from m6rec.text.prompt import Prompt
from m6rec.text.render import Renderer


@dataclass(frozen=True)
class MaxSimConfig:
    """Settings of retrieval by MaxSim; all change results."""

    dim: int = 128
    """Width of a token's vector."""
    max_events: int = 12
    """Longest window of events that is read at once."""
    context_events: int = 0
    """Events repeated from the window before when a long history is cut into windows."""
    temperature: float = 0.05
    """Scores are means of inner products divided by this; where training starts if it is learnt."""
    learn_temperature: bool = True
    """Whether the temperature is trained."""
    num_negatives: int = 0
    """Further random items a batch, beside its targets."""
    logq: bool = True
    """Correct in-batch negatives for how often each item is one."""
    item_region: Region = "source"
    """Where an item's text stands: `source` is read both ways where the family can, `target` left to right."""
    item_tokens: int = 32
    """Longest item text in tokens: a vector each, and one for each of two control tokens."""
    near: int = 64
    """Item vectors near each of a user's that make their items candidates of the index; evaluation asks no index."""
    prompt: str = "retrieval"
    """Prompt file, with one block an event."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"temperature: got {self.temperature}, expected a positive number")
        if self.max_events < 2 or self.context_events > self.max_events // 2:
            raise ConfigError("max_events: expected at least 2, and context_events at most half of it")
        if min(self.dim, self.item_tokens, self.near) < 1:
            raise ConfigError("dim, item_tokens, near: expected at least 1 each")


class MaxSimRetrieval(Retriever):
    """Find the next items in the whole catalogue by late interaction: every token of the history finds its best match.

    An item is the vectors of its text's tokens, read once; a user those of the history's. New items go by their text.

    Source: Khattab and Zaharia, ColBERT (arXiv 2004.12832), equations 1 to 3, on M6-Rec's user text (section 1.4).
    Differs: a contrastive loss over the batch's items at every position of a window, in one pass, where ColBERT has
        one negative a query; scores are means over the user's tokens. A setting of one-vector retrieval that has no
        meaning for token vectors (towers, whitening, id residuals, counted neighbours) is none here.
    """

    name = "retrieval-maxsim"
    Config = MaxSimConfig

    def __init__(
        self,
        config: MaxSimConfig,
        catalogue: Catalogue,
        renderer: Renderer,
        backbone: Backbone,
        verb_names: Sequence[str] = (),
    ) -> None:
        super().__init__(config, catalogue, renderer, backbone, verb_names)
        self.readout = TokenReadout(backbone.hidden_size, config.dim)
        self.reader = HistoryReader(Prompt(config.prompt), renderer, self.tokenizer, backbone.max_tokens)
        self.encoder = SegmentEncoder(config.item_region, max_tokens=config.item_tokens)
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(config.temperature)), requires_grad=config.learn_temperature
        )

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Tokenise the items once."""
        if self.material.tokens is None:
            self.material.tokens = self.tokenizer.texts(self.catalogue.texts)

    def collate(self, examples: list[Window]) -> FlatBatch:
        """Make one batch of windows, every event but the first a target."""
        return self.reader.batch(examples, self.material.record, self.material.table.num_items, predict=True)

    def loss(self, backbone: Backbone, batch: FlatBatch) -> Loss:
        """Return the contrastive loss over every position that has a target."""
        columns = self.columns(batch)
        scores = self.match(backbone, batch, columns) * torch.exp(-self.log_temperature)
        value = contrastive_over(
            scores,
            torch.searchsorted(columns, batch.targets),
            excluded_columns(batch.met(self.material.table.num_items), columns, len(scores)),
            self.log_q(columns),
        )
        return Loss(value, float(len(scores)), {"temperature": float(torch.exp(self.log_temperature.detach()))})

    def columns(self, batch: FlatBatch) -> Int[Tensor, " columns"]:
        """Return the items that this step compares, sorted: the batch's targets, and random ones where asked."""
        num_items, device = self.material.table.num_items, batch.targets.device
        drawn = torch.randint(num_items, (self.config.num_negatives,), device=device)
        return torch.unique(torch.cat([batch.targets, drawn]))

    def match(
        self, backbone: Backbone, batch: FlatBatch, columns: Int[Tensor, " columns"]
    ) -> Float[Tensor, "positions columns"]:
        """Return the mean MaxSim of each position with each item."""
        assert self.material.tokens is not None
        texts = self.encoder.batch(backbone, [self.material.tokens[column] for column in columns.tolist()])
        texts = texts.to(columns.device)
        users, items = self.readout(backbone, batch.tokens), self.readout(backbone, texts)
        return mean_maxsim(users, seen_tokens(batch), batch.rows, items, texts.keep)

    def finish(self, backbone: Backbone) -> None:
        """Read the catalogue with the trained weights."""
        self.catalogue.vectors = self.read_items(backbone, self.catalogue.texts)

    @torch.no_grad()
    def read_items(self, backbone: Backbone, texts: Sequence[str]) -> Float[Tensor, "items tokens dim"]:
        """Return the token vectors of texts, float16; zeros behind the last of each."""
        self.eval()
        vectors = torch.zeros(len(texts), self.config.item_tokens + 2, self.config.dim, dtype=torch.float16)
        for rows, batch in self.encoder.batches(backbone, self.tokenizer.texts(texts), "items"):
            found = self.readout(backbone, batch).half().cpu()
            vectors[torch.tensor(rows), : found.shape[1]] = found
        return vectors

    def space(self) -> TokenSpace:
        """Return the catalogue as it has been read."""
        assert self.catalogue.vectors is not None
        return TokenSpace(self.catalogue.vectors, self.config.near)

    @torch.no_grad()
    def states(
        self, backbone: Backbone, windows: Sequence[Window], record: Callable[[int], Mapping[str, Any]]
    ) -> Float[Tensor, "windows tokens dim"]:
        """Return users' token vectors after each window's last event, scaled so that their MaxSim is the score.

        A window without events is the prompt's own words.
        """
        self.eval()
        device = self.log_temperature.device
        # No event is a target here, so that none is left out for being a search.
        batch = self.reader.batch(windows, record, 0, predict=False).to(device)
        seen = seen_tokens(batch)
        weights = seen / (seen.sum(1, keepdim=True) * torch.exp(self.log_temperature))
        return self.readout(backbone, batch.tokens) * weights[..., None]

    def users(
        self,
        backbone: Backbone,
        space: TokenSpace,
        windows: Sequence[Window],
        places: Sequence[int | None],
        records: Sequence[Record],
    ) -> Float[Tensor, "users tokens dim"]:
        """Return users' token vectors: every event is read by its words."""
        return self.states(backbone, windows, records.__getitem__)

    def scorer(self, backbone: Backbone, name: str = "ours") -> "MaxSimScorer":
        """Return the task as evaluation calls it."""
        return MaxSimScorer(self, backbone, name)


class MaxSimScorer:
    """Exact MaxSim with the whole catalogue, for evaluation; items are read once.

    Args:
        task: over the dataset that is evaluated; in the middle of its training, items are read as it has them now.
        backbone: tuned.
        name: row name in reports.
        batch_size: users at a time; speed and memory only.
    """

    def __init__(self, task: MaxSimRetrieval, backbone: Backbone, name: str = "ours", batch_size: int = 32) -> None:
        self.task, self.backbone, self.name, self.batch_size = task, backbone, name, batch_size
        vectors = task.catalogue.vectors
        read = task.read_items(backbone, task.catalogue.texts) if vectors is None else vectors
        self._space, self._asked = TokenSpace(read, task.config.near), QueryWindows(task.material)

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]`` scores from each query's history."""
        windows, _ = self._asked.of(queries)
        scores = np.empty((len(windows), len(self.task.catalogue)), dtype=np.float32)
        # Similar lengths together: less padding, the same numbers.
        order = sorted(range(len(windows)), key=lambda number: len(windows[number]))
        for start in range(0, len(order), self.batch_size):
            group = order[start : start + self.batch_size]
            users = self.task.states(self.backbone, [windows[row] for row in group], self._asked.record)
            scores[group] = self._space.maxsim(users.cpu()).numpy()
        return scores
