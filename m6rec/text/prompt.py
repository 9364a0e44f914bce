"""Prompts: how a task orders its segments, what it asks, and where the answer goes.

The order stands in ``prompts/<task>.yaml``: a ``trunk`` (what is known of the user) and a ``branch`` (repeated for each
candidate). This module knows no domain (that is the renderer's) and no tokenizer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from m6rec.config import parse
from m6rec.errors import ConfigError, TemplateError, nearest
from m6rec.text.dialogue import Spoken, Turns, turn_segments
from m6rec.text.library import find
from m6rec.text.render import Record, Renderer
from m6rec.text.segments import CONTROL_TOKENS, Layout, Role, Segment
from m6rec.text.template import Document, Phrases, Place, clean, read

Region = Literal["source", "target"]


@dataclass(frozen=True)
class UserText:
    """What is known of one user.

    Args:
        profile: fields of the user.
        context: fields of the moment (``time``, ``place``, ``season``, ...).
        events: oldest first, as ``Dataset.event_record`` gives them.
        now: Unix seconds of the request; default: the time of the last event.
        turns: what was said in a dialogue, oldest first.
    """

    profile: Record = field(default_factory=dict)
    context: Record = field(default_factory=dict)
    events: Sequence[Record] = ()
    now: float | None = None
    turns: Sequence[Spoken] = ()


@dataclass(frozen=True)
class Candidate:
    """What one branch is about.

    Args:
        item: the item's fields, or its words ready-made.
        statistics: name -> number; the domain has words for each name.
        context: fields of the moment in which it was shown.
        events_seen: how many of the user's events came before it; ``None`` = all. Only layouts with one block an
            event can hide the others.
        answers: name -> words to write; a branch ends before an answer it lacks, so that the model goes on from there.
        blanks: instead, an answer that it lacks is an empty segment, and the branch goes on behind it.
    """

    item: Record | str = field(default_factory=dict)
    statistics: Mapping[str, float] = field(default_factory=dict)
    context: Record = field(default_factory=dict)
    events_seen: int | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    blanks: bool = False


@dataclass(frozen=True)
class Budget:
    """Options of a part that is one segment."""

    budget_tokens: int | None = None
    """Longest length in tokens; the tail is cut."""


@dataclass(frozen=True)
class Words:
    """Options of fixed words."""

    text: str
    """A phrase; it may use the candidate's fields."""
    budget_tokens: int | None = None
    """Longest length in tokens; the tail is cut."""


@dataclass(frozen=True)
class Answer:
    """Options of the place where the model writes."""

    name: str = "answer"
    """Which of the candidate's answers stands here."""
    text: str = ""
    """A phrase: what is learnt to stand here, from an example's ``item``, ``event`` or ``review``. Only training reads
    it."""
    budget_tokens: int | None = None
    """Longest length in tokens; the tail is cut."""


@dataclass(frozen=True)
class Events:
    """Options of the user's events."""

    limit: int = 50
    """Most events shown: the newest ones; the others are counted as dropped."""
    time: Literal["ago", "later", "none"] = "ago"
    """``ago`` counts back from now; ``later`` on from the event before, so that no word depends on a later event."""
    blocks: Literal["one", "each"] = "one"
    """``one``: one bidirectional source; ``each``: every event is a block of its own, which sees no later one."""
    stub_tokens: int | None = 12
    """Longest time-and-verb stub."""
    item_tokens: int | None = 32
    """Longest item."""
    query_tokens: int | None = 16
    """Longest search query."""


PARTS: dict[str, type] = {
    "profile": Budget,
    "context": Budget,
    "events": Events,
    "turns": Turns,
    "item": Budget,
    "statistics": Budget,
    "words": Words,
    "answer": Answer,
}
_TRUNK, _BRANCH = (
    ("profile", "context", "events", "turns", "item", "words"),
    ("context", "item", "statistics", "words", "answer"),
)


@dataclass(frozen=True)
class Part:
    """One entry of a prompt file.

    Args:
        name: a control token, or one of :data:`PARTS`.
        options: the part's options; ``None`` for a control token.
        place: where it stands.
        phrases: the compiled text of ``words`` or of an ``answer``.
    """

    name: str
    options: Any
    place: Place
    phrases: Phrases | None = None


class Prompt:
    """One task's order of segments.

    Args:
        name: name of a prompt file (``"retrieval"``), or the path of one's own YAML file.
        folder: the user's template folder; default: the environment variable ``M6REC_TEMPLATES``.

    Attributes:
        budget_tokens: the task's budget for the whole (see ``TextTokenizer.layout``).

    Raises:
        TemplateError: no such prompt, or a mistake in it: names file, line and key.
    """

    def __init__(self, name: str | Path, folder: str | Path | None = None) -> None:
        self.path = find("prompts", name, folder)
        document = read(self.path, ("description", "budget_tokens", "trunk", "branch"))
        self.name = self.path.stem
        self.description = str(document.values.get("description", ""))
        self.budget_tokens = _count(document, "budget_tokens", 256)
        self.trunk = tuple(_parts(document, "trunk", _TRUNK))
        self.branch = tuple(_parts(document, "branch", _BRANCH))

    @property
    def answers(self) -> tuple[Part, ...]:
        """The places where the model writes, in order."""
        return tuple(part for part in self.branch if part.name == "answer")

    def layout(self, renderer: Renderer, user: UserText | None = None, candidates: Sequence[Candidate] = ()) -> Layout:
        """Return the prompt of one user, with one branch for each candidate.

        Args:
            renderer: the domain's words.
            user: what is known of the user; ``None`` = nothing.
            candidates: what the branches are about; a prompt without a ``branch`` takes none.

        Raises:
            TemplateError: candidates for a prompt that has no ``branch``.
        """
        user = user or UserText()
        if candidates and not self.branch:
            raise TemplateError(f"{self.path}: got {len(candidates)} candidates, but the prompt has no `branch`")
        trunk, dropped = self._trunk(renderer, user)
        last = trunk[-1].block if trunk else 0
        branches = []
        for number, candidate in enumerate(candidates, start=1):
            seen = len(user.events) if candidate.events_seen is None else candidate.events_seen
            segments = _branch(self.branch, renderer, candidate, f"branch.{number}.")
            branches.append(tuple(replace(segment, block=min(seen, last)) for segment in segments))
        return Layout(tuple(trunk), tuple(branches), dropped)

    def item(self, renderer: Renderer, record: Record | str, region: Region = "source") -> Layout:
        """Return an item alone: in the bidirectional trunk (``source``) or in a causal branch (``target``)."""
        if region == "target":
            return Layout((), (tuple(_branch(self.branch, renderer, Candidate(record), "branch.1.")),))
        trunk = _branch(self.trunk, renderer, Candidate(record), "")
        return Layout(tuple(trunk))

    def _trunk(self, renderer: Renderer, user: UserText) -> tuple[list[Segment], int]:
        segments: list[Segment] = []
        dropped = 0
        for part in self.trunk:
            block = segments[-1].block if segments else 0
            if part.name == "events":
                dropped += max(0, len(user.events) - part.options.limit)
                segments.extend(_events(part.options, renderer, user))
            elif part.name == "turns":
                dropped += max(0, len(user.turns) - part.options.limit)
                segments.extend(turn_segments(part.options, user.turns))
            elif part.name == "profile":
                segments.extend(_segment(part, "profile", renderer.profile(user.profile), block=block))
            elif part.name == "context":
                segments.extend(_segment(part, "context", renderer.context(user.context), block=block))
            else:
                shared = _branch((part,), renderer, Candidate(), "")
                segments.extend(replace(segment, block=block) for segment in shared)
        return segments, dropped


def _events(options: Events, renderer: Renderer, user: UserText) -> Iterator[Segment]:
    """Yield the stub and the object of the newest events, oldest first."""
    known = [event["time"] for event in user.events if event.get("time") is not None]
    now = (user.now if user.now is not None else (known[-1] if known else None)) if options.time == "ago" else None
    first = max(0, len(user.events) - options.limit)
    for index in range(first, len(user.events)):
        event = user.events[index]
        previous = user.events[index - 1].get("time") if options.time == "later" and index else None
        stub, words = renderer.event(event, now, previous)
        block = index + 1 if options.blocks == "each" else 0
        name, sacrifice = f"event.{index + 1}", index
        if stub:
            yield Segment(f"{name}.stub", stub, "stub", True, block, options.stub_tokens, sacrifice)
        if event.get("item") is not None:
            yield Segment(f"{name}.item", words, "item", True, block, options.item_tokens, sacrifice)
        else:
            yield Segment(f"{name}.query", words, "query", True, block, options.query_tokens, sacrifice)


def _branch(parts: Sequence[Part], renderer: Renderer, candidate: Candidate, prefix: str) -> list[Segment]:
    segments: list[Segment] = []
    for part in parts:
        if part.name == "item":
            segments.extend(_segment(part, "item", renderer.item(candidate.item), prefix))
        elif part.name == "context":
            segments.extend(_segment(part, "context", renderer.context(candidate.context), prefix))
        elif part.name == "statistics":
            phrases = [renderer.statistic(name, value) for name, value in candidate.statistics.items()]
            segments.extend(_segment(part, "statistic", ", ".join(filter(None, phrases)), prefix))
        elif part.name == "words" and part.phrases is not None:
            fields = {"title": candidate.item} if isinstance(candidate.item, str) else candidate.item
            segments.extend(_segment(part, "instruction", part.phrases.render(clean(fields)), prefix))
        elif part.name == "answer":
            if part.options.name in candidate.answers:
                segments.extend(_segment(part, "answer", candidate.answers[part.options.name], prefix))
            elif not candidate.blanks:
                return segments
            else:
                segments.append(Segment(f"{prefix}{_named(part)}", "", "answer", False, 0, part.options.budget_tokens))
        elif part.name in CONTROL_TOKENS:
            segments.append(Segment(f"{prefix}{part.name}", part.name, "control"))
    return segments


def _segment(part: Part, role: Role, text: str, prefix: str = "", block: int = 0) -> Iterator[Segment]:
    """Yield one segment, or nothing where there are no words."""
    if text:
        yield Segment(f"{prefix}{_named(part)}", text, role, role != "answer", block, part.options.budget_tokens)


def _named(part: Part) -> str:
    """Return a part's name; of those that may stand more than once, with its place in the list."""
    return part.name + (part.place.key[part.place.key.rindex("[") :] if part.name in ("words", "answer") else "")


def _parts(document: Document, key: str, known: Sequence[str]) -> Iterator[Part]:
    entries = document.values.get(key) or []
    if not isinstance(entries, list):
        raise document.place(key).error(f"got {entries!r}, expected a list of control tokens and parts")
    for index, entry in enumerate(entries):
        place = document.place(f"{key}[{index}]")
        if isinstance(entry, dict) and len(entry) == 1:
            name, options = next(iter(entry.items()))
        else:
            name, options = entry, {}
        if name in CONTROL_TOKENS:
            yield Part(name, None, place)
        elif name in known:
            yield _part(document, name, options, place)
        else:
            raise place.error(f"unknown part {str(name)!r}{nearest(str(name), [*known, *CONTROL_TOKENS])}")


def _part(document: Document, name: str, options: Any, place: Place) -> Part:
    if name == "words" and isinstance(options, str):
        options = {"text": options}
    if not isinstance(options or {}, dict):
        raise place.error(f"got {options!r}, expected options such as budget_tokens: 32")
    try:
        parsed: Any = parse(PARTS[name], options or {})
    except ConfigError as error:
        raise place.error(str(error)) from error
    phrases = document.phrases(place.key, parsed.text) if isinstance(parsed, Words | Answer) else None
    return Part(name, parsed, place, phrases)


def _count(document: Document, key: str, default: int) -> int:
    value = document.values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise document.place(key).error(f"got {value!r}, expected a positive number of tokens")
    return value
