"""What a generation task writes for held-out moments, beside what people wrote there. Knows no file and no screen."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from m6rec.backbones.base import Backbone
from m6rec.data.histories import Split
from m6rec.decoding import DecodingConfig, Written
from m6rec.errors import DataError
from m6rec.metrics.generation import feature_coverage_ratio, feature_diversity, feature_match_ratio, overlap
from m6rec.tasks.generation.grounding import Evidence, evidence
from m6rec.tasks.generation.passages import Passages
from m6rec.tasks.generation.task import Generation, Request


@dataclass(frozen=True)
class TextEvaluation:
    """Texts and their references.

    Args:
        task: what wrote them.
        passages: the held-out moments, and what people wrote there.
        requests: what was asked.
        written: every answer of each request, by name.
        rests: what each text rests on.
        seconds: how long the writing took.
    """

    task: Generation
    passages: Passages
    requests: Sequence[Request]
    written: Sequence[dict[str, Written]]
    rests: Sequence[Evidence]
    seconds: float

    @property
    def texts(self) -> list[str]:
        """What was written, all answers of a request in one text."""
        return [whole(answers) for answers in self.written]

    @property
    def references(self) -> list[str]:
        """What people wrote."""
        return [text.whole for text in self.passages.texts]

    def means(self) -> dict[str, float]:
        """Return all figures, by name; case does not count, for some tokenizers know none.

        ``feature_*`` are over the references that hold a feature word; ``grounded`` is the share of texts that name no
        attribute which the input lacks, ``complete`` of those that ended within the limit, ``supported`` of those
        that name something of the input.
        """
        texts, references = ([text.casefold() for text in some] for some in (self.texts, self.references))
        named = [frozenset(self.task.features.find(text)) for text in texts]
        true = [self.task.features.find(reference)[:1] for reference in references]
        held = [(names, own[0]) for names, own in zip(named, true, strict=True) if own]
        figures = {
            **overlap(texts, references),
            "feature_match_ratio": feature_match_ratio([names for names, _ in held], [own for _, own in held]),
            "feature_coverage_ratio": feature_coverage_ratio(
                named, frozenset(" ".join(words) for words in self.task.features.phrases)
            ),
            "feature_diversity": feature_diversity(named),
            "grounded": _share(not rests.unsupported for rests in self.rests),
            "supported": _share(bool(rests.attributes) for rests in self.rests),
            "complete": _share(all(one.complete for one in answers.values()) for answers in self.written),
            "words": float(np.mean([len(text.split()) for text in texts])),
        }
        return {self.task.named(name): value for name, value in figures.items()}


def write_held_out(
    task: Generation,
    backbone: Backbone,
    split: Split,
    at_most: int | None = None,
    seed: int = 0,
    decoding: DecodingConfig | None = None,
) -> TextEvaluation:
    """Let a task write for held-out moments.

    Args:
        task: over its dataset.
        backbone: tuned.
        split: ``"valid"`` or ``"test"``.
        at_most: how many are drawn; ``None`` = all.
        seed: of the draw.
        decoding: how to write; default: the task's own setting.

    Raises:
        DataError: the split asks for nothing.
    """
    passages = task.passages(split)
    if not len(passages):
        raise DataError(f"the {split} period holds nothing that the prompt {task.kind!r} asks for")
    passages = passages.take(np.sort(np.random.default_rng(seed).permutation(len(passages))[:at_most]))
    requests, started = task.requests(passages), time.perf_counter()
    written = task.write(backbone, requests, decoding)
    rests = [rests_on(task, request, whole(answers)) for request, answers in zip(requests, written, strict=True)]
    return TextEvaluation(task, passages, requests, written, rests, time.perf_counter() - started)


def rests_on(task: Generation, request: Request, text: str) -> Evidence:
    """Return what a text rests on among all that its prompt was given; events are numbered as in the request."""
    events = request.user.events[-task.config.max_events :]
    found = evidence(
        text,
        task.attributes,
        task.features,
        task.renderer.item(request.item) if request.item else "",
        [task.renderer.event(event)[1] for event in events],
        [str((event.get("item") or {}).get("title", "")) for event in events],
    )
    first = len(request.user.events) - len(events)
    return replace(found, events=tuple(first + number for number in found.events))


def whole(answers: dict[str, Written]) -> str:
    """Return all answers as one text."""
    return " ".join(written.text for written in answers.values())


def _share(truths: Iterable[bool]) -> float:
    return float(np.mean([*truths]))
