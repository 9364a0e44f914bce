"""What every retrieval task is, however users and items are read out: windows to learn from, and a space to search.

Knows no read-out, no loss and no index.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.indexes.base import Index
from m6rec.tasks.base import Material, Task, built_over
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.heads import load_heads, read_names, save_heads
from m6rec.tasks.retrieval.data import TrainingMaterial, log_share
from m6rec.tasks.retrieval.segment_table import SegmentTable
from m6rec.tasks.retrieval.windows import Window
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer

Record = Mapping[str, Any]


class Space(Protocol):
    """A catalogue as it is searched; a user is a tensor that only the space itself and its indexes can read."""

    @property
    def texts(self) -> Float[Tensor, "items width"]:
        """One vector of length one an item: which items read alike."""
        ...

    def index(self, inner: str, places: NDArray[np.integer]) -> Index:
        """Return an index over some items.

        Args:
            inner: name on the indexes shelf of what finds the near vectors.
            places: catalogue positions, which become the ids.
        """
        ...

    def scores(self, user: Tensor, places: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return a user's exact scores of some items, what is counted excepted."""
        ...

    def followed(self, histories: Sequence[NDArray[np.integer]]) -> NDArray[np.float32]:
        """Return ``[num_users, num_items]`` what counted links add to the scores; never negative.

        Args:
            histories: catalogue positions, oldest first, -1 = no item.
        """
        ...


class Retriever(Task):
    """Find the next items in the whole catalogue.

    Args:
        config: of the task; has ``max_events``, ``context_events`` and ``logq``.
        catalogue: the items.
        renderer: the domain's words.
        backbone: tuned.
        verb_names: of the log.
    """

    config: Any

    def __init__(
        self, config: Any, catalogue: Catalogue, renderer: Renderer, backbone: Backbone, verb_names: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.config, self.catalogue, self.renderer = config, catalogue, renderer
        self.verb_names = tuple(verb_names)
        self.tokenizer = TextTokenizer(backbone.tokenizer)
        self._material: TrainingMaterial | None = None

    @abstractmethod
    def read_items(self, backbone: Backbone, texts: Sequence[str]) -> Tensor:
        """Return what the catalogue keeps of items' texts: a row each, without gradients, on the CPU."""

    @abstractmethod
    def space(self) -> Space:
        """Return the catalogue to be searched, as it has been read."""

    @abstractmethod
    def users(
        self,
        backbone: Backbone,
        space: Any,
        windows: Sequence[Window],
        places: Sequence[int | None],
        records: Sequence[Record],
    ) -> Tensor:
        """Return users as the space has them, a row each.

        Args:
            backbone: tuned.
            space: this task's.
            windows: the users' last events; their segments are numbers in what follows.
            places: every event's position in the catalogue, ``None`` = no item of it.
            records: every event's fields.
        """

    @abstractmethod
    def scorer(self, backbone: Backbone, name: str = "ours") -> Any:
        """Return the task as evaluation calls it: exact scores of the whole catalogue; ``name`` is its row."""

    @classmethod
    def build(cls, config: Any, material: Material, backbone: Backbone) -> Self:
        """Return a new task over a dataset; reads training events, and the words of what is known before the test."""
        torch.manual_seed(material.seed)
        dataset = material.dataset
        known = dataset.histories().before("test")
        train = known.before("train")
        task = cls(
            config, Catalogue.of(dataset, material.renderer, train), material.renderer, backbone, known.verb_names
        )
        table = SegmentTable.of(dataset, known)
        task._material = TrainingMaterial(
            dataset.event_record, table, *table.readable(train), config.max_events, config.context_events
        )
        return task

    @property
    def material(self) -> TrainingMaterial:
        """What the task is trained on.

        Raises:
            RunError: a loaded run has none.
        """
        return built_over(self._material)

    def examples(self) -> Sequence[Window]:
        """Return the training windows."""
        return self.material.windows

    def lengths(self) -> Sequence[int]:
        """Return each window's number of events."""
        return [int(length) for length in self.material.windows.lengths()]

    def log_q(self, items: Int[Tensor, " columns"]) -> Float[Tensor, " columns"] | None:
        """Return the log of each item's share of the targets (and of the random negatives)."""
        if not self.config.logq:
            return None
        return log_share(self.material.target_counts).to(items.device)[items]

    def save(self, folder: Path) -> None:
        """Write heads, catalogue and the names that inference needs."""
        save_heads(self, folder, {"verb_names": list(self.verb_names)})
        self.catalogue.save(folder / "catalogue")

    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote into a task over the same dataset."""
        load_heads(self, folder)
        self.catalogue.vectors = Catalogue.load(folder / "catalogue").vectors

    @classmethod
    def load(cls, config: Any, folder: Path, renderer: Renderer, backbone: Backbone) -> Self:
        """Read what ``save`` wrote."""
        names = read_names(folder)
        task = cls(config, Catalogue.load(folder / "catalogue"), renderer, backbone, names["verb_names"])
        load_heads(task, folder)
        return task
