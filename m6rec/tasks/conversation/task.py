"""Conversation: what to recommend at a moment of a dialogue, and what to say. Knows no loop and no report."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.data.dialogues import Dialogue, Moment, Turn, moments, named, read_dialogues
from m6rec.data.histories import Split
from m6rec.decoding import DecodingConfig
from m6rec.errors import DataError, RunError
from m6rec.metrics.ranking import recall
from m6rec.nn import pooling
from m6rec.tasks.base import Loss, Material, Task
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.conversation.data import NOTHING, ConversationBatch, DialogueWords
from m6rec.tasks.conversation.evidence import BASE_TERMS, Asked, Evidence, Mentions, trait_fields
from m6rec.tasks.conversation.phrases import Heard
from m6rec.tasks.conversation.titles import Titles
from m6rec.tasks.encoding import SegmentEncoder
from m6rec.tasks.heads import load_heads, read_names, read_tensors, save_heads
from m6rec.text.batch import TokenBatch, collate
from m6rec.text.prompt import Prompt
from m6rec.text.render import Renderer
from m6rec.text.tokenize import TextTokenizer

CUTOFFS = (1, 10, 50)
# The retriever is sure of itself as far as its first list holds the probability.
SURE_OF = 10
_START = {"named_by_user": 0.0, "named_by_system": 0.0}
_TOGETHER = 128
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConversationConfig:
    """Settings of the conversation task; all change results unless they say otherwise."""

    prompt: str = "conversation"
    """Prompt file: how a dialogue is read, and how it is said whether the system recommends or asks."""
    reply: bool = True
    """Whether the words of the reply are learnt; without them the backbone stays as it is, and `chat` has no words."""
    learn_from: int | None = None
    """Training moments that are learnt from, drawn at random; null = all. Without replies a thousand are enough."""
    item_tokens: int = 64
    """Longest text of an item."""
    decay: float = 0.8
    """Weight of each named item further back."""
    most_items: int = 2
    """Most items that one reply names. Inference only."""
    brought: int = 20
    """How many items the retriever brings to a reply, for the language model to choose among. Inference only."""
    language: float = 0.2
    """Weight of the language model in that choice; 0 = the retriever alone. Inference only."""
    words: Literal["heard", "free"] = "heard"
    """What stands around the titles: phrases heard in training, among which the model chooses, so that a reply can
    neither make an item up nor say of one what is true of another; or whatever the model writes. Inference only."""
    ask_below: float | None = None
    """Ask back where the retriever's first ten hold less probability; null = as validation tells moments at which
    people recommended from those at which they did not. Inference only."""
    most_questions: int = 2
    """Times in a row that it asks back, never in the same words, before it recommends what it has. Inference only."""
    decoding: DecodingConfig = field(default_factory=lambda: DecodingConfig(max_new_tokens=48, no_repeat_ngram=4))
    """How replies are written where nobody says otherwise. Inference only."""


class Conversation(Task):
    """Talk: rank the whole catalogue by what was said and named, and say the reply around the titles that it brings.

    The retriever is a softmax over the catalogue whose logits are a dozen terms of evidence with a learnt weight each;
    the reply is written by the backbone.

    Args:
        config: its settings.
        catalogue: the items.
        renderer: the domain's words.
        backbone: gives tokenizer and widths.
        mentions: what training dialogues name.
        fields: the items' fields whose values are traits.
        heard: phrases that training dialogues hold.

    Source: M6-Rec (2205.08084) section 3 for the dialogue as source and the reply as target; the terms are those of
        item-kNN, BM25 and sentence encoders.
    Differs: no learnt item or dialogue vectors. With a thousand dialogues every such tower that was tried lost
        (EXPERIMENTS.md), while twelve weights are settled by a few hundred turns.
    """

    name = "conversation"
    Config = ConversationConfig
    threshold: Tensor

    def __init__(
        self,
        config: ConversationConfig,
        catalogue: Catalogue,
        renderer: Renderer,
        backbone: Backbone,
        mentions: Mentions,
        fields: Sequence[str],
        heard: Heard | None = None,
    ) -> None:
        super().__init__()
        self.config, self.catalogue, self.renderer = config, catalogue, renderer
        self.mentions, self.fields, self.heard = mentions, tuple(fields), heard or Heard((), ())
        self.tokenizer, self.prompt = TextTokenizer(backbone.tokenizer), Prompt(config.prompt)
        self.max_tokens, self.vocabulary = backbone.max_tokens, len(backbone.tokenizer)
        self.encoder = SegmentEncoder("source", "mean", max_tokens=config.item_tokens)
        self.weights = nn.Parameter(torch.tensor([_START.get(name, 0.5) for name in (*BASE_TERMS, *fields)]))
        self.register_buffer("threshold", torch.zeros(()))
        self._evidence: Evidence | None = None
        self._words: DialogueWords | None = None
        self._dialogues: dict[Split, list[Dialogue]] = {}
        self._moments: list[Moment] = []
        self._vectors: Tensor | None = None

    @classmethod
    def build(cls, config: ConversationConfig, material: Material, backbone: Backbone) -> "Conversation":
        """Return a new task over a dataset; counts training dialogues alone.

        Raises:
            DataError: there are no training dialogues in which the system recommends.
        """
        dataset = material.dataset
        splits: tuple[Split, ...] = ("train", "valid", "test")
        dialogues = {split: read_dialogues(dataset, split) for split in splits}
        catalogue = Catalogue.of(dataset, material.renderer, dataset.histories().before("train"))
        mentions = Mentions.count([named(dialogue.turns) for dialogue in dialogues["train"]], len(catalogue))
        task = cls(config, catalogue, material.renderer, backbone, mentions, trait_fields(catalogue.records))
        task._dialogues = dialogues
        known = [moment for moment in moments(dialogues["train"]) if config.reply or moment.recommends]
        task._moments = _sample(known, config.learn_from, material.seed)
        task.heard = Heard.of([task.words.pieces(moment.reply) for moment in known], task.words.titles)
        if not any(moment.recommends for moment in task._moments):
            raise DataError(
                f"{dataset.folder} has no training dialogue in which the system recommends an item; prepare a source "
                "with dialogues: world, redial, opendialkg"
            )
        return task

    @property
    def trains_backbone(self) -> bool:
        """Whether the loss reaches the backbone: only the words of the reply do."""
        return self.config.reply

    @property
    def words(self) -> DialogueWords:
        """Dialogues in tokens, for the catalogue as it is now."""
        if self._words is None or len(self._words.names) != len(self.catalogue):
            names = [str(record.get("title") or "") for record in self.catalogue.records]
            titles = Titles(self.catalogue, self.mentions.counts.tolist())
            self._words = DialogueWords(self.prompt, self.renderer, self.tokenizer, titles, names, self.max_tokens)
        return self._words

    @property
    def evidence(self) -> Evidence:
        """The terms over the catalogue as it is now.

        Raises:
            RunError: the items have not been read yet.
        """
        if self.catalogue.vectors is None:
            raise RunError("the catalogue has no vectors yet; call refresh(backbone, 0) before the first loss")
        if self._evidence is None or len(self._evidence.vectors) != len(self.catalogue):
            texts = self.tokenizer.texts(self.catalogue.texts)
            self._evidence = Evidence(
                self.catalogue.records,
                self.fields,
                texts,
                self.catalogue.vectors,
                self.vocabulary,
                self.mentions.padded(len(self.catalogue)),
                self.config.decay,
            )
        return self._evidence

    def examples(self) -> Sequence[int]:
        """Return numbers of training moments."""
        return range(len(self._moments))

    def lengths(self) -> Sequence[int]:
        """Return roughly how long each moment's dialogue is, in characters."""
        return [sum(len(turn.text) for turn in moment.turns) for moment in self._moments]

    def refresh(self, backbone: Backbone, epoch: int) -> None:
        """Read the items with the backbone as it is now; and the dialogues, where it stays as it is."""
        if self.config.reply or self.catalogue.vectors is None:
            self.encode(backbone)
        if not self.config.reply and self._vectors is None:
            self._vectors = self.read(backbone, [moment.turns for moment in self._moments])

    def encode(self, backbone: Backbone) -> None:
        """Read the texts of the items."""
        self.catalogue.vectors = self.encoder.encode(backbone, self.tokenizer.texts(self.catalogue.texts), "items")
        self._evidence = None

    def collate(self, examples: list[int]) -> ConversationBatch:
        """Make one batch of moments."""
        chosen = [self._moments[number] for number in examples]
        dialogues = self._dialogues["train"]
        asked = [self.words.asked(moment.turns, named(dialogues[moment.number].turns)) for moment in chosen]
        pairs = [(row, item) for row, moment in enumerate(chosen) for item in moment.reply.items]
        rows, targets = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        if self._vectors is not None:
            return ConversationBatch(tuple(asked), rows, targets, self._vectors[examples])
        tokens, labels = self._taught(chosen)
        return ConversationBatch(tuple(asked), rows, targets, None, tokens, labels)

    def _taught(self, chosen: Sequence[Moment]) -> tuple[TokenBatch, Tensor]:
        lessons = self.words.lessons(chosen)
        tokens = collate([lesson.tokens for lesson in lessons], self.tokenizer.pad_id)
        labels = torch.full_like(tokens.ids, NOTHING)
        for row, lesson in enumerate(lessons):
            labels[row, : len(lesson.labels)] = torch.from_numpy(lesson.labels)
        return tokens, labels

    def loss(self, backbone: Backbone, batch: ConversationBatch) -> Loss:
        """Return the nats of the recommended items among the catalogue, plus those of the reply's tokens."""
        figures, vectors = dict[str, float](), batch.vectors
        value = self.weights.new_zeros(())
        if batch.tokens is not None:
            assert batch.labels is not None
            states = backbone(batch.tokens)
            # The retriever's few weights learn from the vectors; the vectors learn from the words alone.
            vectors = _trunk_means(states.detach(), batch.tokens)
            wanted = batch.labels != NOTHING
            said = F.cross_entropy(backbone.logits(states[wanted]).float(), batch.labels[wanted])
            value, figures["reply"] = value + said, float(said.detach())
        assert vectors is not None
        if len(batch.targets):
            scores = self._weighed(batch.asked, vectors)
            found = F.cross_entropy(scores[batch.rows], batch.targets.to(scores.device))
            value, figures["recommend"] = value + found, float(found.detach())
        return Loss(value, float(len(batch.asked)), figures)

    def _weighed(self, asked: Sequence[Asked], vectors: Tensor) -> Float[Tensor, "asked items"]:
        return self.evidence.weigh(asked, vectors.cpu()).to(self.weights.device) @ self.weights

    @torch.no_grad()
    def read(self, backbone: Backbone, dialogues: Sequence[Sequence[Turn]]) -> Float[Tensor, "dialogues hidden"]:
        """Return the vectors of dialogues, on the CPU; each depends on its own words alone."""
        layouts = self.words.read(dialogues)
        vectors = torch.zeros(len(layouts), backbone.hidden_size)
        order = sorted(range(len(layouts)), key=lambda row: len(layouts[row]))
        training = backbone.training
        backbone.eval()
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = collate([layouts[row] for row in rows], self.tokenizer.pad_id).to(backbone.control.device)
            vectors[rows] = _trunk_means(backbone(batch), batch).cpu()
        backbone.train(training)
        return vectors

    @torch.no_grad()
    def log_probabilities(
        self, backbone: Backbone, dialogues: Sequence[Sequence[Turn]], repeat: bool = True
    ) -> Float[Tensor, "dialogues items"]:
        """Return the logarithm of each item's probability to be recommended now.

        Args:
            backbone: tuned.
            dialogues: the turns so far, with the items that they name.
            repeat: whether what was named already may be recommended.
        """
        vectors, parts = self.read(backbone, dialogues), []
        for start in range(0, len(dialogues), _TOGETHER):
            asked = [self.words.asked(turns) for turns in dialogues[start : start + _TOGETHER]]
            scores = self._weighed(asked, vectors[start : start + _TOGETHER]).cpu()
            scores[:, ~torch.from_numpy(self.catalogue.offered)] = -torch.inf
            for row, moment in enumerate(asked):
                scores[row, list(() if repeat else moment.items)] = -torch.inf
            parts.append(scores.log_softmax(1))
        return torch.cat(parts) if parts else torch.zeros(0, len(self.catalogue))

    def finish(self, backbone: Backbone) -> None:
        """Read the items with the trained weights, and settle when to ask back."""
        if self.config.reply or self.catalogue.vectors is None:
            self.encode(backbone)
        self._vectors = None
        if self.config.ask_below is not None or not self.config.reply:
            self.threshold.fill_(self.config.ask_below or 0.0)
            return
        known = list(moments(self._dialogues["valid"] or self._dialogues["train"]))
        sure = confidence(self.log_probabilities(backbone, [moment.turns for moment in known], repeat=False))
        did = np.array([moment.recommends for moment in known])
        self.threshold.fill_(best_threshold(sure.numpy(), did))
        logger.info("asks back below %.3f (share of %d moments)", float(self.threshold), len(known))

    @torch.no_grad()
    def measure(
        self, backbone: Backbone, split: Split, at_most: int | None = None, seed: int = 0
    ) -> dict[str, float] | None:
        """Return recall over the whole catalogue, one question a recommended item, and the reply's nats a token.

        What was named before may be recommended again, as in the published figures.

        Raises:
            RunError: a loaded run has no dialogues.
        """
        if not self._dialogues:
            raise RunError("this task was loaded for inference; build it over a dataset to train or evaluate it")
        known = _sample(list(moments(self._dialogues[split])), at_most, seed)
        asked = [moment for moment in moments(self._dialogues[split]) if moment.recommends]
        if not asked:
            return None
        asked = _sample(asked, at_most, seed)
        if self.catalogue.vectors is None:
            self.encode(backbone)
        scores = self.log_probabilities(backbone, [moment.turns for moment in asked])
        pairs = [(row, item) for row, moment in enumerate(asked) for item in dict.fromkeys(moment.reply.items)]
        ranks = middle_ranks(scores, *np.array(pairs).T)
        offsets = np.arange(len(ranks) + 1)
        figures = {f"recall@{cutoff}": float(recall(ranks, offsets, cutoff).mean()) for cutoff in CUTOFFS}
        return figures | (self._said(backbone, known) if self.config.reply else {})

    def _said(self, backbone: Backbone, known: Sequence[Moment]) -> dict[str, float]:
        """Return nats and perplexity of what people said at these moments."""
        nats, count = 0.0, 0
        backbone.eval()
        for start in range(0, len(known), 16):
            tokens, labels = self._taught(known[start : start + 16])
            tokens, labels = tokens.to(backbone.control.device), labels.to(backbone.control.device)
            wanted = labels != NOTHING
            logits = backbone.logits(backbone(tokens)[wanted]).float()
            nats += float(F.cross_entropy(logits, labels[wanted], reduction="sum"))
            count += int(wanted.sum())
        return {"nats_per_token": nats / count, "perplexity": float(np.exp(nats / count))}

    def save(self, folder: Path) -> None:
        """Write weights, catalogue and counts."""
        save_heads(self, folder, {"fields": list(self.fields), "asks": self.heard.asks, "offers": self.heard.offers})
        self.catalogue.save(folder / "catalogue")
        save_file(self.mentions.tensors(), folder / "mentions.safetensors")

    def restore(self, folder: Path, backbone: Backbone) -> None:
        """Read what ``save`` wrote into a task over the same dataset."""
        load_heads(self, folder)
        self.catalogue.vectors, self._evidence = Catalogue.load(folder / "catalogue").vectors, None

    @classmethod
    def load(cls, config: ConversationConfig, folder: Path, renderer: Renderer, backbone: Backbone) -> "Conversation":
        """Read what ``save`` wrote."""
        mentions = Mentions.of(read_tensors(folder / "mentions.safetensors"))
        catalogue, names = Catalogue.load(folder / "catalogue"), read_names(folder)
        heard = Heard(tuple(names["asks"]), tuple(map(tuple, names["offers"])))
        task = cls(config, catalogue, renderer, backbone, mentions, names["fields"], heard)
        load_heads(task, folder)
        return task


def _sample(known: list[Moment], at_most: int | None, seed: int) -> list[Moment]:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(known))[:at_most])
    return [known[number] for number in chosen]


def _trunk_means(states: Float[Tensor, "batch tokens hidden"], batch: TokenBatch) -> Float[Tensor, "batch hidden"]:
    """Return the mean state of each trunk: it sees no branch, so that a reply behind it changes nothing."""
    return pooling.mean(states.float(), batch.keep & (batch.branches == 0))


def confidence(log_probabilities: Float[Tensor, "moments items"]) -> Float[Tensor, " moments"]:
    """Return how much of the probability the first ten items hold: the recall that the retriever itself expects."""
    return log_probabilities.topk(min(SURE_OF, log_probabilities.shape[1]), dim=1).values.exp().sum(1)


def best_threshold(values: NDArray[np.floating], yes: NDArray[np.bool_]) -> float:
    """Return the value that tells yes from no best: the largest sum of the two shares that are right; 0 = nothing does.

    Source: Youden 1950, "Index for rating diagnostic tests".

    >>> best_threshold(np.array([0.1, 0.2, 0.6, 0.7]), np.array([False, False, True, True]))
    0.6
    """
    order = np.argsort(values, kind="stable")
    no_below = np.r_[0, np.cumsum(~yes[order])] / max(1, (~yes).sum())
    yes_below = np.r_[0, np.cumsum(yes[order])] / max(1, yes.sum())
    best = int((no_below - yes_below)[:-1].argmax())
    return float(values[order][best]) if best else 0.0


def middle_ranks(
    scores: Float[Tensor, "moments items"], rows: NDArray[np.int64], items: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rank of each item in its row; of items that tie, the middle one."""
    own = scores[rows, items][:, None]
    higher, equal = (scores[rows] > own).sum(1), (scores[rows] == own).sum(1)
    return (higher + (equal + 1) // 2).numpy().astype(np.int64)
