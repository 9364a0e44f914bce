"""A film's genre from its title and tags: text classification, for the benches that compare tuners."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.data.readers import read_csv
from m6rec.data.sources.movielens import LatestSmall
from m6rec.errors import RunError
from m6rec.tasks.base import Loss, Task
from m6rec.text.batch import TokenBatch, branch_ends, collate
from m6rec.text.segments import Layout, Segment
from m6rec.text.tokenize import TextTokenizer

MOST_TOKENS = 48
FEWEST_FILMS = 40
# Validation is asked often, so it is small.
SHARES = (0.75, 0.8)


@dataclass(frozen=True)
class Film:
    """A film with one genre.

    Args:
        text: title, year and tags.
        genre: number of its genre.
    """

    text: str
    genre: int


@dataclass(frozen=True)
class GenreBatch:
    """Films in tokens.

    Args:
        tokens: one film a row: its words in the source region, an empty target region.
        genres: ``[films]``.
    """

    tokens: TokenBatch
    genres: Int[Tensor, " films"]

    def to(self, device: torch.device | str) -> "GenreBatch":
        """Return the batch on ``device``."""
        return GenreBatch(self.tokens.to(device), self.genres.to(device))


def read_films(folder: Path) -> tuple[list[Film], list[str]]:
    """Return the films that have exactly one genre, of a genre with at least FEWEST_FILMS of them, and the genres."""
    tags: dict[str, list[str]] = defaultdict(list)
    for chunk in read_csv(folder / "tags.csv"):
        for item, tag in zip(chunk.text("movieId").to_pylist(), chunk.text("tag").to_pylist(), strict=True):
            tags[item].append(tag)
    rows: list[Mapping[str, Any]] = []
    for table in LatestSmall(LatestSmall.Config(path=str(folder))).items():
        rows += [row for row in table.to_pylist() if row["category"] and "|" not in row["category"]]
    counts = Counter(row["category"] for row in rows)
    genres = sorted(genre for genre, count in counts.items() if count >= FEWEST_FILMS)
    films = [
        Film(_words(row, tags[row["item"]]), genres.index(row["category"])) for row in rows if row["category"] in genres
    ]
    return films, genres


def _words(row: Mapping[str, Any], tags: Sequence[str]) -> str:
    year = f" ({row['year']})" if row["year"] else ""
    return ", ".join([f"{row['title'] or 'unknown'}{year}", *dict.fromkeys(tag.lower() for tag in tags)])


class Genres(Task):
    """Which genre? The state at [EOS], a softmax over the genres, cross entropy.

    Args:
        films: all of them.
        num_genres: how many genres.
        backbone: tuned; brings the softmax weight where it has options.
        seed: of the split.
    """

    name = "genres"
    Config = type(None)
    catalogue: Any = None

    def __init__(self, films: Sequence[Film], num_genres: int, backbone: Backbone, seed: int) -> None:
        super().__init__()
        self.tokenizer = TextTokenizer(backbone.tokenizer)
        self.norm = nn.LayerNorm(backbone.hidden_size)
        self.num_genres = num_genres
        self.head = nn.Linear(backbone.hidden_size, num_genres) if backbone.options(num_genres) is None else None
        order = np.random.default_rng(seed).permutation(len(films))
        train, valid, test = np.split(order, [round(share * len(films)) for share in SHARES])
        self.parts = {
            name: [films[place] for place in places]
            for name, places in (("train", train), ("valid", valid), ("test", test))
        }

    def examples(self) -> Sequence[Film]:
        return self.parts["train"]

    def collate(self, examples: list[Film]) -> GenreBatch:
        layouts = self.tokenizer.layouts([_layout(film.text) for film in examples], MOST_TOKENS)
        genres = torch.tensor([film.genre for film in examples])
        return GenreBatch(collate(layouts, self.tokenizer.pad_id), genres)

    def logits(self, backbone: Backbone, batch: GenreBatch) -> Float[Tensor, "films genres"]:
        """Return the logit of every genre."""
        states = self.norm(backbone(batch.tokens)[branch_ends(batch.tokens)])
        head = self.head or backbone.options(self.num_genres)
        return head(states).float()

    def loss(self, backbone: Backbone, batch: GenreBatch) -> Loss:
        return Loss(F.cross_entropy(self.logits(backbone, batch), batch.genres), float(len(batch.genres)))

    @torch.no_grad()
    def judge(self, backbone: Backbone, part: str) -> dict[str, float]:
        """Return accuracy and log loss on the films of a part."""
        batches = [self.collate(self.parts[part][at : at + 64]) for at in range(0, len(self.parts[part]), 64)]
        logits = torch.cat([self.logits(backbone, batch) for batch in batches])
        genres = torch.cat([batch.genres for batch in batches])
        right = (logits.argmax(1) == genres).float().mean()
        return {"accuracy": float(right), "log_loss": float(F.cross_entropy(logits, genres))}

    def save(self, folder: Path) -> None:
        raise RunError("this task lives in a bench only; it is not saved")

    restore = load = build = save  # type: ignore[assignment]


def _layout(text: str) -> Layout:
    trunk = [("[BOS']", "control"), (text, "item"), ("[EOS']", "control")]
    branch = [("[BOS]", "control"), ("[EOS]", "control")]
    return Layout(
        tuple(Segment(f"trunk.{place}", words, role) for place, (words, role) in enumerate(trunk)),
        (tuple(Segment(f"branch.1.{place}", words, role) for place, (words, role) in enumerate(branch)),),
    )
