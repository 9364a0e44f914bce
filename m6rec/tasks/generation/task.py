"""Generation: an explanation, a title, a query, a description; what is written is the prompt's matter, not ours.

Knows no loop, no report and no single kind of text.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.config import plain
from m6rec.data.histories import Split
from m6rec.decoding import Constraint, DecodingConfig, Form, Written, fill
from m6rec.errors import DataError
from m6rec.tasks.base import Loss, Material, Task, built_over
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.generation.data import GenerationBatch, PassageWriter, generation_batch, read_marks
from m6rec.tasks.generation.grounding import Lexicon, Unsaid, attributes, feature_words, words_of
from m6rec.tasks.generation.passages import Passages, gather
from m6rec.tasks.heads import read_names, save_heads
from m6rec.tasks.trees import Slate, read_tree, write_trees
from m6rec.text.prompt import Candidate, Prompt, UserText
from m6rec.text.render import Renderer
from m6rec.text.segments import Layout
from m6rec.text.tokenize import TextTokenizer

if TYPE_CHECKING:
    import datasets

TOLD = ("title", "description")
TREES_AT_ONCE = 8
WRITTEN_AT_ONCE = 32


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of the generation task; all change results unless they say otherwise."""

    prompt: str = "explanation"
    """Prompt file: what is written. Its answers say which table of the dataset teaches them."""
    given: Literal["nothing", "feature"] = "nothing"
    """``feature`` hands the model a word of the true answer, as PETER+ does; reports then say so in every name."""
    grounded: bool = False
    """Whether an answer may name only those attributes of the catalogue that its prompt holds. Inference only."""
    min_value: float | None = None
    """Least rating of a review or event that is learnt from; null = all are."""
    max_events: int = 24
    """Longest stretch of history in one tree; a passage sees at least half of it."""
    max_branches: int = 24
    """Most passages in one tree; memory and speed only."""
    decoding: DecodingConfig = field(default_factory=lambda: DecodingConfig(min_new_tokens=1))
    """How answers are written where nobody says otherwise. Inference only."""


@dataclass(frozen=True)
class Request:
    """Something to be written.

    Args:
        user: what is known of the user.
        item: fields of the item that it is about; empty = none.
        answers: those that are given already.
        draw: number of this draw, for sampling.
    """

    user: UserText
    item: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    draw: int = 0


class Generation(Task):
    """Text for a user's moment: the language-model loss on the tokens of the answers, and on what ends them.

    Source: M6-Rec (2205.08084), section 3 (explanation, content creation, query generation): user text in the source
        region, a sentence with blanks in the target region. PETER (2105.11601) for the setting of explanations.
    Differs: all moments of a user are branches of one tree, so that one pass learns them all; unless told otherwise the
        model is not handed a word of the true review, as PETER+ and M6-Rec's comparison with it are.
    """

    name = "generation"
    Config = GenerationConfig

    def __init__(self, config: GenerationConfig, catalogue: Catalogue, renderer: Renderer, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.catalogue, self.renderer = config, catalogue, renderer
        self.text = TextTokenizer(backbone.tokenizer)
        self.prompt = Prompt(config.prompt)
        room = backbone.max_tokens
        self.writer = PassageWriter(self.prompt, renderer, self.text, room, config.max_events, config.max_branches)
        self.attributes = Lexicon(attributes(catalogue.records))
        self.features = Lexicon(())
        self._unsaid: Unsaid | None = None
        self._material: Material | None = None
        self._passages: dict[Split, Passages] = {}
        self._rows: "datasets.Dataset | None" = None

    @property
    def kind(self) -> str:
        """What it writes: the name of its prompt."""
        return self.prompt.name

    @property
    def blanks(self) -> tuple[str, ...]:
        """Names of the answers, in the order in which they are written."""
        return tuple(part.options.name for part in self.prompt.answers)

    @property
    def about_item(self) -> bool:
        """Whether its prompt shows an item."""
        return any(part.name == "item" for part in self.prompt.branch)

    @cached_property
    def known(self) -> dict[tuple[str, ...], int]:
        """Words of each title and description in the catalogue -> position of the first item that has them."""
        texts = ((place, record.get(name)) for place, record in enumerate(self.catalogue.records) for name in TOLD)
        told = {words_of(str(text)): place for place, text in reversed([*texts]) if text}
        return {words: place for words, place in told.items() if words}

    @classmethod
    def build(cls, config: GenerationConfig, material: Material, backbone: Backbone) -> "Generation":
        """Return a new task over a dataset.

        Raises:
            TemplateError: the prompt's answers do not say what they are learnt from.
            DataError: the training period holds nothing that the prompt asks for.
        """
        train = material.dataset.histories().before("train")
        task = cls(config, Catalogue.of(material.dataset, material.renderer, train), material.renderer, backbone)
        task._material = material
        passages = task.passages("train")
        if not len(passages):
            raise DataError(
                f"{material.dataset.folder}: the training period holds nothing that the prompt {task.kind!r} asks "
                f"for ({', '.join(task.blanks)}); look at task.prompt and task.min_value"
            )
        task.features = Lexicon(feature_words([text.whole for text in passages.texts]))
        return task

    @property
    def material(self) -> Material:
        """What the task is trained on.

        Raises:
            RunError: a loaded run has none.
        """
        return built_over(self._material)

    def passages(self, split: Split) -> Passages:
        """Return what there is to write in a split."""
        if split not in self._passages:
            least = self.config.min_value
            self._passages[split] = gather(self.material.dataset, self.prompt, split, least)
        return self._passages[split]

    def examples(self) -> "datasets.Dataset":
        """Return the training trees, tokenised once into a memory-mapped dataset."""
        if self._rows is not None:  # the loop asks before every epoch
            return self._rows
        material, passages = self.material, self.passages("train")
        trees, marks = itertools.tee(self.writer.trees(self._layouts(passages, self.writer.slates(passages))))
        key = {
            "data": material.dataset.manifest.hash,
            "config": {name: value for name, value in plain(self.config).items() if name != "decoding"},
            "prompt": self.prompt.path.read_text(encoding="utf-8"),
            "words": self.renderer.fingerprint,
            "tokens": [self.text.control_ids, len(self.text.tokenizer)],
            "max_tokens": self.writer.max_tokens,
        }
        extra = ({"learnt": learnt.tolist()} for _, learnt in marks)
        self._rows = write_trees(material.cache, (tree for tree, _ in trees), extra, key)
        return self._rows

    def _layouts(self, passages: Passages, groups: Sequence[Slate]) -> Any:
        hints = [self.hint(text.whole) for text in passages.texts]
        return self.writer.layouts(self.material.dataset, passages, groups, hints)

    def hint(self, answer: str) -> dict[str, str]:
        """Return what the prompt is told of the true answer: nothing, or its first feature word."""
        found = self.features.find(answer) if self.config.given == "feature" else []
        return {"feature_given": found[0]} if found else {}

    def lengths(self) -> Sequence[int]:
        """Return each tree's number of tokens."""
        lengths: list[int] = pc.list_value_length(self.examples().data["ids"]).to_pylist()
        return lengths

    def collate(self, examples: list[Mapping[str, Any]]) -> GenerationBatch:
        """Make one batch of trees."""
        trees, marks = [read_tree(row) for row in examples], [read_marks(row) for row in examples]
        return generation_batch(trees, marks, self.text.pad_id)

    def loss(self, backbone: Backbone, batch: GenerationBatch) -> Loss:
        """Return the mean cross entropy of the answers' tokens, in nats."""
        logits = backbone.logits(backbone(batch.tokens)[batch.rows, batch.columns]).float()
        return Loss(F.cross_entropy(logits, batch.labels), float(len(batch.labels)))

    @torch.no_grad()
    def measure(
        self, backbone: Backbone, split: Split, at_most: int | None = None, seed: int = 0
    ) -> dict[str, float] | None:
        """Return perplexity, and nats an answer, on held-out answers."""
        passages = self.passages(split)
        if not len(passages):
            return None
        passages = passages.take(np.sort(np.random.default_rng(seed).permutation(len(passages))[:at_most]))
        training, nats, tokens = backbone.training, 0.0, 0.0
        backbone.eval()
        pairs = self.writer.trees(self._layouts(passages, self.writer.slates(passages)))
        while some := list(itertools.islice(pairs, TREES_AT_ONCE)):
            batch = generation_batch([tree for tree, _ in some], [marks for _, marks in some], self.text.pad_id)
            loss = self.loss(backbone, batch.to(backbone.control.device))
            nats, tokens = nats + float(loss.value) * loss.weight, tokens + loss.weight
        backbone.train(training)
        return {
            "perplexity": math.exp(nats / tokens),
            "nats_per_token": nats / tokens,
            "nats_per_answer": nats / len(passages),
            "answers": float(len(passages)),
        }

    def named(self, figure: str) -> str:
        """Return a figure's name for a report, which says where the model was handed a word of the answer."""
        return figure if self.config.given == "nothing" else f"{figure}[{self.config.given} given]"

    def requests(self, passages: Passages) -> list[Request]:
        """Return passages as requests: what may be known, and nothing of the answers but what the setting hands out."""
        history, dataset, requests = passages.moments.history, self.material.dataset, []
        for number, text in enumerate(passages.texts):
            user = int(passages.moments.users[number])
            start = int(history.offsets[user])
            stop = start + int(passages.moments.lengths[number])
            slate = Slate(user, max(start, stop - self.config.max_events), stop, np.array([number]))
            item = {**text.item, **self.hint(text.whole)}
            requests.append(Request(self.writer.user(dataset, history, slate), item))
        return requests

    def write(
        self, backbone: Backbone, requests: Sequence[Request], decoding: DecodingConfig | None = None
    ) -> list[dict[str, Written]]:
        """Return every answer of each request, by its name.

        Args:
            backbone: tuned.
            requests: any number; an answer does not depend on what else is asked for.
            decoding: how; default: the task's own setting.

        Raises:
            ConfigError: the answers do not fit behind the prompt.
        """
        decoding, written = decoding or self.config.decoding, []
        for start in range(0, len(requests), WRITTEN_AT_ONCE):
            some = requests[start : start + WRITTEN_AT_ONCE]
            forms = [self.form(request) for request in some]
            found = fill(backbone, self.text, forms, decoding, self.writer.max_tokens)
            for request, answers in zip(some, found, strict=True):
                open_blanks = (name for name in self.blanks if name not in request.answers)
                written.append(dict(zip(open_blanks, answers, strict=True)))
        return written

    def form(self, request: Request) -> Form:
        """Return the prompt of a request, with its blanks."""
        user = replace(request.user, events=request.user.events[-self.config.max_events :])
        candidate = Candidate(item=request.item, answers=request.answers, blanks=True)
        layout = self.prompt.layout(self.renderer, user, [candidate])
        return Form(layout, self._constraint(layout) if self.config.grounded else None, request.draw)

    def _constraint(self, layout: Layout) -> Constraint:
        if self._unsaid is None:
            self._unsaid = Unsaid(self.attributes, self.text)
        return self._unsaid.given(segment.text for segment in layout.segments)

    def save(self, folder: Path) -> None:
        """Write the features and the catalogue; there are no heads."""
        save_heads(self, folder, {"features": sorted(" ".join(words) for words in self.features.phrases)})
        self.catalogue.save(folder / "catalogue")

    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote into a task over the same dataset."""
        self.features = Lexicon(read_names(folder)["features"])

    @classmethod
    def load(cls, config: GenerationConfig, folder: Path, renderer: Renderer, backbone: Backbone) -> "Generation":
        """Read what ``save`` wrote."""
        features = Lexicon(read_names(folder)["features"])
        task = cls(config, Catalogue.load(folder / "catalogue", encoded=False), renderer, backbone)
        task.features = features
        return task
