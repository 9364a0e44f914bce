"""Pretraining: M6's two objectives over everything in a dataset that is text.

Adapts a pretrained backbone to a domain with any tuner, or teaches a small one from scratch. Knows no family beyond
which way it reads its source.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.data.histories import Split
from m6rec.errors import ConfigError, DataError
from m6rec.tasks.base import Loss, Material, Task
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.pretraining.corpus import KINDS, TITLES, Corpus, Kind
from m6rec.tasks.pretraining.objectives import Objectives, Regions
from m6rec.tasks.pretraining.packing import NOTHING, Row, lay_out, pack
from m6rec.tasks.pretraining.token_store import Tokens, TokenStore, store_name, write_store
from m6rec.text.batch import TokenBatch, collate
from m6rec.text.prompt import Prompt
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer

_MEASURED = 32
# Most pieces of a text with blanks.
_LONGEST = 4
# What the random choices of one run are drawn for.
_KINDS_OF_EXAMPLE, _ROWS, _SPANS = 0, 1, 2


@dataclass(frozen=True)
class PretrainingConfig:
    """What is read, and how it is learnt. Every field changes results, unless it says otherwise."""

    sources: tuple[Kind, ...] = KINDS
    """Parts of the dataset that are read: behaviour, items, reviews, dialogues; those it lacks are left out."""
    files: tuple[str, ...] = ()
    """UTF-8 text files that are read too, one document a line; of every fifty lines two are held out."""
    prompt: str = "retrieval"
    """Prompt whose trunk shows a history: the words of behaviour."""
    infilling: float = 0.2
    """Share of documents with blanks to fill in; the others are written whole or from a point on."""
    blanks: float = 0.3
    """Share of a document's tokens that its blanks leave out."""
    span: float = 5.0
    """Mean tokens of a blank."""
    sourced: float = 0.7
    """Share of the other documents whose beginning is given as the source; the rest are written from nothing, which
    teaches a prefix-LM at every token."""
    dense: bool = True
    """Whether a model that reads forward learns the words of its sources too; changes nothing for the others, whose
    sources are read both ways."""
    row_tokens: int = 256
    """Tokens of a row; documents are packed into rows and do not see each other."""
    seed: int = 0
    """Of spans, cuts and rows; the recipe's where it is not given."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: got {getattr(self, name)}, expected a share between 0 and 1"
            for name in ("infilling", "blanks", "sourced")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.row_tokens < 16:
            problems.append(f"row_tokens: got {self.row_tokens}, expected 16 or more")
        if self.span < 1:
            problems.append(f"span: got {self.span}, expected 1 or more")
        if not self.sources and not self.files:
            problems.append("sources: got none and no files, expected something to read")
        if problems:
            raise ConfigError("\n".join(problems))


@dataclass(frozen=True)
class PretrainingBatch:
    """Packed rows.

    Args:
        tokens: every document a branch, at most one a row with a source in the trunk.
        labels: ``[batch, tokens]`` the token to predict at each; ``NOTHING`` where there is none.
    """

    tokens: TokenBatch
    labels: Int[Tensor, "batch tokens"]

    def to(self, device: torch.device | str) -> "PretrainingBatch":
        """Return the batch on ``device``."""
        return PretrainingBatch(self.tokens.to(device), self.labels.to(device))


class Pretraining(Task):
    """Language modelling over a domain's text: fill in blanks, and write what comes next.

    Args:
        config: its settings.
        renderer: the domain's words.
        backbone: gives the tokenizer, the longest sequence, and which way a source is read.
        catalogue: the items.

    Source: M6-Rec (arXiv 2205.08084) section 3; the prefix-LM mask is UniLM's (arXiv 1905.03197).
    Differs: a document is written in sentences of its own ([BOS] event [EOS] [BOS] event [EOS]), so that one pass
        teaches the form in which each task asks for one; a model that reads forward learns its sources too, which
        costs nothing and is half of all tokens.
    """

    name = "pretraining"
    Config = PretrainingConfig

    def __init__(self, config: PretrainingConfig, renderer: Renderer, backbone: Backbone, catalogue: Catalogue) -> None:
        super().__init__()
        self.config, self.renderer, self.catalogue = config, renderer, catalogue
        self.tokenizer = TextTokenizer(backbone.tokenizer)
        self.forward_only = backbone.family == "causal"
        self.width = min(config.row_tokens, backbone.max_tokens)
        self._objectives = Objectives(self.tokenizer.control_ids)
        # Only a task that is built over a dataset has anything to learn.
        self._corpus: Corpus | None = None
        self._cache = Path()
        self._store: Sequence[Tokens] = ()
        self._parts = np.zeros((0, 3), dtype=np.int64)
        self._rooms = np.zeros(0, dtype=np.int64)
        self._rows: list[NDArray[np.int64]] = []
        self._epoch = 0

    @classmethod
    def build(cls, config: PretrainingConfig, material: Material, backbone: Backbone) -> "Pretraining":
        """Return the task over a dataset: its text is tokenised (once) and packed.

        Raises:
            DataError: there is no text, or a text file is missing.
        """
        if backbone.family == "convolution":
            raise ConfigError(f"got {backbone.name}, which reads no text; pretrain a language model, e.g. minilm")
        dataset = material.dataset
        catalogue = Catalogue.of(dataset, material.renderer, dataset.histories().before("train"))
        task = cls(config, material.renderer, backbone, catalogue)
        task._corpus, task._cache = cls.corpus(config, material), material.cache
        store = task._tokens("train")
        if not len(store):
            raise DataError(
                f"got no text in {dataset.folder} for {', '.join((*config.sources, *config.files))}; look at its "
                "tables, or name others: task.sources, task.files"
            )
        task._share_out(store)
        return task

    @classmethod
    def corpus(cls, config: PretrainingConfig, material: Material) -> Corpus:
        """Return what a task of this config reads.

        Raises:
            DataError: a text file is missing.
        """
        prompt = Prompt(config.prompt)
        return Corpus(material.dataset, material.renderer, prompt, config.sources, config.files)

    def save(self, folder: Path) -> None:
        """Write the items; the words that were learnt are in the weights."""
        self.catalogue.save(folder)

    @classmethod
    def load(cls, config: PretrainingConfig, folder: Path, renderer: Renderer, backbone: Backbone) -> "Pretraining":
        """Read what ``save`` wrote."""
        return cls(config, renderer, backbone, Catalogue.load(folder, encoded=False))

    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote: nothing that the dataset does not say."""
        self.catalogue = Catalogue.load(folder, encoded=False)

    def examples(self) -> Sequence[tuple[int, int]]:
        """Return (epoch, row) pairs: the rows stay, their blanks and cuts change by the epoch."""
        return [(self._epoch, row) for row in range(len(self._rows))]

    def lengths(self) -> Sequence[int]:
        """Return how many tokens each row may need."""
        return [int(self._rooms[row].sum()) for row in self._rows]

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Draw other blanks and cuts from here on."""
        self._epoch = epoch

    def collate(self, examples: list[tuple[int, int]]) -> PretrainingBatch:
        """Draw the blanks and cuts of some rows and pad them."""
        return self._padded([self._row(epoch, row) for epoch, row in examples])

    def loss(self, backbone: Backbone, batch: PretrainingBatch) -> Loss:
        """Return the mean cross entropy of all tokens to predict."""
        losses = token_losses(backbone, batch)
        return Loss(losses.mean(), weight=len(losses))

    def measure(
        self, backbone: Backbone, split: Split, at_most: int | None = None, seed: int = 0
    ) -> dict[str, float] | None:
        """Return nats per token and per item title on held-out text.

        A title is scored as it is asked for: after the user's history and how they chose it ("bought"); the nats are
        the sum over its tokens, not its end. Other text is scored after its beginning.

        Returns:
            ``nats_per_token`` (all held-out text), ``perplexity``, ``nats_per_token[KIND]``, and, where anybody chose
            anything, ``nats_per_title``.
        """
        store = self._tokens(split)
        chosen = np.random.default_rng(seed).permutation(len(store))[:at_most]
        # Similar lengths together: little padding.
        chosen = chosen[np.argsort(store.rooms(_whole(store, chosen)), kind="stable")]
        if not len(chosen):
            return None
        training = backbone.training
        backbone.eval()
        sums: dict[str, list[tuple[float, float]]] = {}
        for start in range(0, len(chosen), _MEASURED):
            documents = [store[int(number)] for number in chosen[start : start + _MEASURED]]
            batch = self._padded([lay_out([self._question(each)], self.forward_only, False) for each in documents])
            for document, nats, count in zip(documents, *row_nats(backbone, batch), strict=True):
                sums.setdefault(document.kind, []).append((nats, count))
        backbone.train(training)
        return _figures(sums)

    def _tokens(self, split: Split) -> TokenStore:
        """Return the tokenised documents of a split, made where they are not yet."""
        assert self._corpus is not None
        corpus, config = self._corpus, self.config
        files = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in corpus.files)
        name = store_name(
            split,
            corpus.dataset.manifest.hash,
            self.renderer.fingerprint,
            corpus.prompt.path.read_text(encoding="utf-8"),
            _vocabulary_hash(self.tokenizer.tokenizer),
            config.sources,
            files,
            self.width,
        )
        path = self._cache / name
        if not path.is_file():
            write_store(corpus.documents(split), self.tokenizer, self.width, path)
        return TokenStore(path)

    def _share_out(self, store: TokenStore) -> None:
        """Settle which document becomes which kind of example, and which ones share a row."""
        config, count = self.config, len(store)
        draws = np.random.default_rng([config.seed, _KINDS_OF_EXAMPLE]).random(count)
        blanked = draws < config.infilling
        from_a_point_on = draws < config.infilling + (1 - config.infilling) * config.sourced
        rng = np.random.default_rng([config.seed, _ROWS])
        whole, short = (np.flatnonzero(chosen) for chosen in (~blanked, blanked))
        self._parts = np.concatenate([_whole(store, whole), _cut(store, short, rng)])
        documents, self._rooms = self._parts[:, 0], store.rooms(self._parts)
        self._blanked = blanked[documents]
        self._sourced = self._blanked | (from_a_point_on & (store.num_pieces > 1))[documents]
        self._store, self._rows = store, pack(self._rooms, self.width, self._sourced & (not self.forward_only), rng)

    def _row(self, epoch: int, row: int) -> Row:
        rng = np.random.default_rng([self.config.seed, _SPANS, epoch, row])
        examples = [self._example(int(part), rng) for part in self._rows[row]]
        return lay_out(examples, self.forward_only, self.config.dense)

    def _example(self, part: int, rng: np.random.Generator) -> Regions:
        """Return a part of a document under its objective."""
        document, start, stop = self._parts[part].tolist()
        pieces = self._store[document].pieces[start:stop]
        if self._blanked[part]:
            return self._objectives.infilling(pieces, rng, self.config.blanks, self.config.span)
        given = int(rng.integers(1, len(pieces))) if self._sourced[part] else 0
        return self._objectives.generation(pieces, given)

    def _question(self, document: Tokens) -> Regions:
        """Return a held-out document: its end is asked for, given its beginning."""
        pieces = document.pieces
        if document.kind != TITLES:
            return self._objectives.generation(pieces, given=min(1, len(pieces) - 1))
        how, what = pieces[-2:]
        asked = self._objectives.generation((*pieces[:-2], np.concatenate([how, what])), given=len(pieces) - 2)
        # [BOS], how they chose it, and [EOS] are not the title.
        place = np.arange(len(asked.target))
        return replace(asked, learnt=(place > len(how)) & (place < len(asked.target) - 1))

    def _padded(self, rows: Sequence[Row]) -> PretrainingBatch:
        tokens = collate([row.layout for row in rows], self.tokenizer.pad_id)
        labels = torch.full_like(tokens.ids, NOTHING)
        for number, row in enumerate(rows):
            labels[number, : len(row.labels)] = torch.from_numpy(row.labels)
        return PretrainingBatch(tokens, labels)


def token_losses(backbone: Backbone, batch: PretrainingBatch) -> Float[Tensor, " predicted"]:
    """Return the nats of every token to predict, row by row.

    The head runs only where something is predicted: it is a third of a small model's work.
    """
    wanted = batch.labels != NOTHING
    states = backbone(batch.tokens)[wanted]
    # Logits come out in the precision of the pass; a softmax over thousands of pieces wants its sums in float32.
    return F.cross_entropy(backbone.logits(states).float(), batch.labels[wanted], reduction="none")


@torch.no_grad()
def row_nats(backbone: Backbone, batch: PretrainingBatch) -> tuple[list[float], list[float]]:
    """Return each row's nats, summed over its tokens to predict, and how many these are."""
    batch = batch.to(next(backbone.parameters()).device)
    rows = (batch.labels != NOTHING).nonzero()[:, 0]
    losses = token_losses(backbone, batch)
    nats = torch.zeros(batch.tokens.size, device=losses.device).index_add_(0, rows, losses)
    counts = torch.bincount(rows, minlength=batch.tokens.size)
    return nats.tolist(), counts.tolist()


def _whole(store: TokenStore, documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return documents as parts (see :meth:`TokenStore.rooms`), each whole."""
    return np.stack([documents, np.zeros_like(documents), store.num_pieces[documents]], axis=1)


def _cut(store: TokenStore, documents: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return documents in parts of one to ``_LONGEST`` pieces: people ask for blanks in a sentence, not in a year."""
    parts = []
    for document in documents.tolist():
        count = int(store.num_pieces[document])
        drawn = np.cumsum(rng.integers(1, _LONGEST + 1, count))
        stops = [*drawn[drawn < count].tolist(), count]
        parts += [(document, start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
    return np.array(parts, dtype=np.int64).reshape(-1, 3)


def _figures(found: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Return the figures of held-out text, from (nats, tokens) of each document of each kind."""
    sums = {kind: np.array(rows).sum(axis=0) for kind, rows in found.items()}
    nats, tokens = np.sum(list(sums.values()), axis=0)
    figures = {"nats_per_token": nats / tokens, "perplexity": np.exp(nats / tokens)}
    figures |= {f"nats_per_token[{kind}]": total[0] / total[1] for kind, total in sorted(sums.items())}
    if TITLES in found:
        figures["nats_per_title"] = sums[TITLES][0] / len(found[TITLES])
    return {name: float(value) for name, value in figures.items()}


def _vocabulary_hash(tokenizer: Any) -> str:
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(words.encode()).hexdigest()
