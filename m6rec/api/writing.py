"""What is written for a request: explanations, creations, filled blanks. Knows no file and no screen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from m6rec.assemble import Run
from m6rec.config import parse, plain
from m6rec.decoding import DecodingConfig, Form, Opening, Written, fill, stream
from m6rec.errors import ConfigError, DataError
from m6rec.evaluation.texts import rests_on, whole
from m6rec.requests import Event, Recommendation, named, with_record
from m6rec.tasks.conversation.task import Conversation
from m6rec.tasks.generation.grounding import Evidence, words_of
from m6rec.tasks.generation.task import Generation, Request
from m6rec.tasks.likelihood import ask, likelihoods
from m6rec.tasks.pretraining.task import Pretraining
from m6rec.text.prompt import Prompt, UserText
from m6rec.text.segments import BLANK, Layout, Segment
from m6rec.text.tokenize import TextTokenizer

# How often more is drawn than asked for, before fewer different creations are an answer too.
DRAWS = 4


@dataclass(frozen=True)
class Explanation:
    """Why an item suits a user.

    Args:
        text: what was written.
        item: the item.
        evidence: what it names, and which events of the history hold it.
        drops: for each of ``evidence.events``, how much the item's score drops without it; empty = no run scores.
        complete: whether the text ended within the limit of length.
    """

    text: str
    item: Recommendation
    evidence: Evidence
    drops: tuple[float, ...]
    complete: bool

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Creation:
    """Something made for a user or a group.

    Args:
        answers: name of each blank -> what was written.
        duplicate_of: id of an item in the catalogue that has such a title or description; ``None`` = none.
        log_prob: natural logarithm of its probability by the model.
        complete: whether every blank ended within the limit of length.
    """

    answers: dict[str, str]
    duplicate_of: str | None
    log_prob: float
    complete: bool

    def __str__(self) -> str:
        return "; ".join(self.answers.values())


@dataclass(frozen=True)
class Filled:
    """A text whose blanks are filled.

    Args:
        text: the whole.
        blanks: what was written into each; one that met the limit of length is not ``complete``.
    """

    text: str
    blanks: tuple[Written, ...]

    @property
    def complete(self) -> bool:
        """Whether every blank ended within the limit of length."""
        return all(blank.complete for blank in self.blanks)

    def __str__(self) -> str:
        return self.text


def decoding_of(run: Run, settings: Mapping[str, Any]) -> DecodingConfig:
    """Return a run's way of decoding, with some settings changed.

    Raises:
        ConfigError: unknown or impossible settings.
    """
    own = run.task.config.decoding if isinstance(run.task, Generation | Conversation) else DecodingConfig()
    return parse(DecodingConfig, {**plain(own), **settings}, "decoding")


def explain(run: Run, events: Sequence[Event], item: Mapping[str, Any], decoding: DecodingConfig) -> Explanation:
    """Return an explanation without score drops.

    Args:
        run: writes explanations.
        events: as :func:`m6rec.requests.read_events` gives them.
        item: the item's fields.
        decoding: how to write.
    """
    task = writes(run)
    records = [with_record(task.catalogue, event) for event in events]
    request = Request(UserText(events=records), item)
    (answers,) = task.write(run.backbone, [request], decoding)
    text = whole(answers)
    complete = all(written.complete for written in answers.values())
    return Explanation(text, named(item, 0.0), rests_on(task, request, text), (), complete)


def create(
    run: Run, events: Sequence[Event], item: Mapping[str, Any], n: int, apart: float, decoding: DecodingConfig
) -> list[Creation]:
    """Return up to ``n`` different texts, the likeliest first.

    Args:
        run: writes such texts.
        events: of a user or a group.
        item: what it is about; empty = nothing.
        n: how many; more than one have to be sampled.
        apart: the least share of their words that two of them do not have in common.
        decoding: how to write.
    """
    task = writes(run)
    user = UserText(events=[with_record(task.catalogue, event) for event in events])
    draws = DRAWS * n if n > 1 else 1
    written = task.write(run.backbone, [Request(user, item, draw=number) for number in range(draws)], decoding)
    kept: list[dict[str, Written]] = []
    for answers in written:
        if all(_distance(answers, other) > 0 and _distance(answers, other) >= apart for other in kept):
            kept.append(answers)
        if len(kept) == n:
            break
    return sorted((_creation(task, answers) for answers in kept), key=lambda made: -made.log_prob)


def together(histories: Sequence[Sequence[Any]], most: int) -> list[Any]:
    """Return a group's events: the newest of everyone in turn, as many as fit, each member's in their order.

    >>> together([["a", "b", "c"], ["x"]], most=3)
    ['b', 'c', 'x']
    """
    ages = sorted((age, member) for member, events in enumerate(histories) for age in range(len(events)))
    taken = [sum(1 for _, other in ages[:most] if other == member) for member in range(len(histories))]
    return [event for events, count in zip(histories, taken, strict=True) for event in events[len(events) - count :]]


def forms(run: Run, texts: Sequence[str], source: str) -> list[Form]:
    """Return free texts as prompts, each ``[MASK]`` a blank; a text without one is gone on with.

    Raises:
        DataError: neither the text nor the source has a word.
    """
    for text in texts:
        if not text.replace(BLANK, "").strip() and not source.strip():
            raise DataError(f"got {text!r}, expected a text with words, and {BLANK} for each blank")
    layout = _infilling if isinstance(run.task, Pretraining) else _forward
    return [Form(layout(text, source)) for text in texts]


def generate(run: Run, texts: Sequence[str], source: str, decoding: DecodingConfig) -> list[Filled]:
    """Return free texts with their blanks filled; nothing is cut to make it fit.

    Raises:
        DataError: a text without a word.
        ConfigError: a text that is too long for the model.
    """
    answers = fill(run.backbone, TextTokenizer(run.backbone.tokenizer), forms(run, texts, source), decoding)
    return [
        Filled(_with_blanks(text, [one.text for one in own]), tuple(own))
        for text, own in zip(texts, answers, strict=True)
    ]


def generate_stream(run: Run, text: str, source: str, decoding: DecodingConfig) -> Iterator[str]:
    """Yield what goes on behind a text, in pieces.

    Raises:
        ConfigError: a text with a blank in it, or as :func:`generate`.
    """
    if BLANK in text:
        raise ConfigError(f"got a text with {BLANK}, expected one that ends where the answer begins; use generate")
    tokenizer = TextTokenizer(run.backbone.tokenizer)
    (form,) = forms(run, [text], source)
    begun = Layout(form.layout.trunk, (form.layout.branches[0][: form.blanks[0]],))
    opening = Opening(tokenizer.layout(begun), frozenset([tokenizer.control_ids["[EOS]"]]))
    return stream(run.backbone, tokenizer, opening, decoding)


def scores(run: Run, texts: Sequence[str], user: UserText) -> list[float]:
    """Return the log-likelihood of each text behind a user's history, in nats.

    Raises:
        DataError: a text without words.
        ConfigError: a text that is too long for the model.
    """
    tokenizer, prompt = TextTokenizer(run.backbone.tokenizer), Prompt("zeroshot")
    for text in texts:
        if not text.strip():
            raise DataError("got a text without words, expected an event in words")
        if (count := len(tokenizer.text(text))) > run.backbone.max_tokens - 4:
            raise ConfigError(
                f"got a text of {count} tokens, expected at most {run.backbone.max_tokens - 4}; shorten it"
            )
    begin, end = Segment("[BOS]", "[BOS]", "control"), Segment("[EOS]", "[EOS]", "control")
    said = tuple((begin, Segment(f"text.{number}", text, "answer"), end) for number, text in enumerate(texts))
    layout = replace(prompt.layout(run.renderer, user), branches=said)
    questions = ask(tokenizer, [layout], run.backbone.max_tokens)
    return [float(total) for total in likelihoods(run.backbone, questions, tokenizer.pad_id)[0].total]


def writes(run: Run) -> Generation:
    """Return the task of a run that writes."""
    assert isinstance(run.task, Generation)
    return run.task


def _distance(one: Mapping[str, Written], other: Mapping[str, Written]) -> float:
    """Return the share of the words of both that only one of them has."""
    mine, yours = (
        {word for written in answers.values() for word in words_of(written.text)} for answers in (one, other)
    )
    return len(mine ^ yours) / max(1, len(mine | yours))


def _creation(task: Generation, answers: Mapping[str, Written]) -> Creation:
    place = next((task.known[words] for one in answers.values() if (words := words_of(one.text)) in task.known), None)
    return Creation(
        {name: written.text for name, written in answers.items()},
        None if place is None else task.catalogue.keys[place],
        sum(written.log_prob for written in answers.values()),
        all(written.complete for written in answers.values()),
    )


def _pieces(text: str, names: str) -> list[Segment]:
    """Return a text as words and blanks, in order."""
    segments: list[Segment] = []
    for number, part in enumerate(part.strip() for part in text.split(BLANK)):
        if number:
            segments.append(Segment(f"{names}.blank.{number}", "", "answer"))
        if part:
            segments.append(Segment(f"{names}.words.{number}", part, "instruction"))
    return segments


def _forward(text: str, source: str) -> Layout:
    """Return a text in the target region, to be gone on with from blank to blank, as the tasks' prompts are."""
    branch = [Segment("[EOS']", "[EOS']", "control"), Segment("[BOS]", "[BOS]", "control"), *_pieces(text, "target")]
    if BLANK not in text:
        branch.append(Segment("target.blank", "", "answer"))
    trunk = [
        Segment("[BOS']", "[BOS']", "control"),
        *([Segment("source", source, "context")] if source.strip() else []),
    ]
    return Layout(tuple(trunk), ((*branch, Segment("[EOS]", "[EOS]", "control")),))


def _infilling(text: str, source: str) -> Layout:
    """Return a text in the source region, its blanks asked for one after the other, as pretraining has them.

    One without a blank is a source, behind which a new sentence is written.
    """
    given = [Segment("source", source, "context")] if source.strip() else []
    pieces = _pieces(text, "source")
    shown = [replace(one, text=one.text or BLANK, role=one.role if one.text else "control") for one in pieces]
    count = max(1, sum(not one.text for one in pieces))
    asked: list[Segment] = []
    for number in range(count):
        asked += [Segment(f"answer.{number}", "", "answer"), Segment(f"mark.{number}", BLANK, "control")]
    begin, end = Segment("[BOS']", "[BOS']", "control"), Segment("[EOS']", "[EOS']", "control")
    branch = (Segment("[BOS]", "[BOS]", "control"), *asked[:-1], Segment("[EOS]", "[EOS]", "control"))
    return Layout((begin, *given, *shown, end), (branch,))


def _with_blanks(text: str, answers: Sequence[str]) -> str:
    """Return a text with its blanks filled in, or with the answer behind it.

    >>> _with_blanks("a [MASK] lamp", ["red"]), _with_blanks("a red", ["lamp"])
    ('a red lamp', 'a red lamp')
    """
    parts = text.split(BLANK)
    if len(parts) == 1:
        return f"{text.rstrip()} {answers[0]}".rstrip()
    return "".join(piece for pair in zip(parts, [*answers, ""], strict=True) for piece in pair)
