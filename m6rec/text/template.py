"""Phrases: sandboxed templates that are compiled once, and the YAML files they stand in.

A phrase is a Jinja2 expression with words around it. Values are data: they are written out, never read as templates. A
phrase that needs a field which the record lacks vanishes as a whole. This module knows no domain and no task.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from m6rec.errors import TemplateError, nearest

# Longer values are cut before rendering: no budget in tokens would keep more, and tokenising them costs time.
MAX_VALUE_CHARACTERS = 2_000
# The same YAML, read in C where PyYAML was built with it: 0.15 CPU-s less at every start.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Missing(jinja2.StrictUndefined):
    """A field that the record lacks: false in a condition, and the end of its phrase wherever it is written out."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


def words(value: Any) -> str:
    """Return a list, or a text with ``|`` between its parts, as an enumeration.

    >>> words("Action|Comedy"), words(["red", "blue"])
    ('Action, Comedy', 'red, blue')
    """
    parts = str(value).split("|") if isinstance(value, str | jinja2.Undefined) else [str(part) for part in value]
    return ", ".join(part.strip() for part in parts if part.strip())


def leaf(value: Any, steps: int = 1) -> str:
    """Return the last ``steps`` of a category path, the most special one first.

    >>> leaf("Beauty > Makeup > Nails > Nail Polish", 2)
    'Nail Polish, Nails'
    """
    path = [step.strip() for step in str(value).split(">") if step.strip()]
    return ", ".join(reversed(path[-steps:]))


def clean(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``record`` without empty values (``None``, NaN, blank text, empty lists), white space made single.

    >>> clean({"title": " A\\n title ", "brand": "", "price": float("nan"), "tags": []})
    {'title': 'A title'}
    """
    cleaned = {}
    for name, value in record.items():
        if isinstance(value, str):
            value = " ".join(value[:MAX_VALUE_CHARACTERS].split())
        elif isinstance(value, Mapping):
            value = clean(value)
        if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
            continue
        if isinstance(value, Sequence | Mapping) and not len(value):
            continue
        cleaned[name] = value
    return cleaned


def _written(value: Any) -> Any:
    # 4.0 is written "4", a list as an enumeration: records come from tables, phrases are read by a language model.
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return words(value) if isinstance(value, list | tuple) else value


FILTERS = {"words": words, "leaf": leaf}

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=Missing, finalize=_written, autoescape=False)
_ENVIRONMENT.filters.update(FILTERS)


@dataclass(frozen=True)
class Place:
    """Where something stands, for messages.

    Args:
        path: the file.
        key: dotted key inside it, e.g. ``item[1]``.
        line: 1-based line number.
    """

    path: Path
    key: str
    line: int

    def error(self, problem: str) -> TemplateError:
        """Return the error that names this place."""
        return TemplateError(f"{self.path}, line {self.line}, key {self.key!r}: {problem}")


class Phrase:
    """One compiled template.

    Args:
        source: words with ``{{ field }}`` in them.
        place: where it stands.

    Attributes:
        fields: names of the fields that stand in it.

    Raises:
        TemplateError: bad syntax, or a filter that does not exist.
    """

    def __init__(self, source: str, place: Place) -> None:
        self.source, self.place = source, place
        try:
            # Jinja2 itself leaves unknown names inside a condition until they are met.
            tree = _ENVIRONMENT.parse(source)
            _check_names(tree)
            self.fields = frozenset(node.name for node in tree.find_all(nodes.Name))
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise place.error(f"{error} in {source!r}") from error

    def bind(self, values: Mapping[str, Any]) -> Context:
        """Return ``values`` (see :func:`clean`) as phrases read them."""
        return self._template.new_context(dict(values))

    def render(self, context: Context) -> str:
        """Return the phrase with its fields filled in; ``""`` where one that it needs is missing.

        Raises:
            TemplateError: the phrase asks for something forbidden or impossible.
        """
        try:
            return "".join(self._template.root_render_func(context))
        except jinja2.UndefinedError:
            return ""
        # Whatever a template's own arithmetic or method calls raise is the template's mistake: say where it stands.
        except Exception as error:
            raise self.place.error(f"cannot render {self.source!r}: {type(error).__name__}: {error}") from error


class Phrases:
    """Phrases in a row; each brings its own punctuation and vanishes alone.

    Args:
        phrases: in the order in which they are written.
    """

    def __init__(self, phrases: Sequence[Phrase]) -> None:
        self.phrases = tuple(phrases)

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields that stand in them."""
        return frozenset[str]().union(*(phrase.fields for phrase in self.phrases))

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the phrases that have all their fields, without a separator left over in front."""
        if not self.phrases:
            return ""
        # Binding costs more than writing, so that one record is bound once for all its phrases.
        context = self.phrases[0].bind(values)
        return "".join([phrase.render(context) for phrase in self.phrases]).strip().lstrip(",;:| ")


def _check_names(tree: nodes.Template) -> None:
    for kind, node, known in (("filter", nodes.Filter, _ENVIRONMENT.filters), ("test", nodes.Test, _ENVIRONMENT.tests)):
        for use in tree.find_all(node):
            if use.name not in known:
                shown = nearest(use.name, known).partition(" (known")[0].rstrip(";")
                raise jinja2.TemplateSyntaxError(f"unknown {kind} {use.name!r}{shown}", use.lineno)


@dataclass(frozen=True)
class Document:
    """A YAML file whose keys know their lines.

    Args:
        path: the file.
        values: its content.
        lines: dotted key -> 1-based line.
    """

    path: Path
    values: dict[str, Any]
    lines: dict[str, int] = field(repr=False)

    def place(self, key: str) -> Place:
        """Return where ``key`` stands (the nearest parent's line where it has none of its own)."""
        return Place(self.path, key, self.lines.get(key, 1))

    def phrases(self, key: str, value: Any) -> Phrases:
        """Compile ``value``, a phrase or a list of phrases, that stands under ``key``."""
        if isinstance(value, str):
            return Phrases([Phrase(value, self.place(key))])
        if not isinstance(value, list) or not all(isinstance(source, str) for source in value):
            raise self.place(key).error(f"got {value!r}, expected a phrase or a list of phrases (quote each of them)")
        return Phrases([Phrase(source, self.place(f"{key}[{index}]")) for index, source in enumerate(value)])


def read(path: Path, known: Sequence[str]) -> Document:
    """Read a template file.

    Args:
        path: a YAML file that holds one mapping.
        known: the keys that it may hold at its top.

    Raises:
        TemplateError: unreadable, not YAML, not a mapping, a key twice, or an unknown key (offers the nearest).
    """
    try:
        text = path.read_text(encoding="utf-8")
        values, found = _parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise TemplateError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise TemplateError(f"{path}: got {type(values).__name__}, expected a mapping with some of: {', '.join(known)}")
    lines: dict[str, int] = {}
    for name, number in found:
        if lines.setdefault(name, number) != number:
            raise Place(path, name, number).error(f"stands twice (first on line {lines[name]}); keep one")
    document = Document(path, values, lines)
    for key in values:
        if key not in known:
            raise document.place(str(key)).error(f"unknown key{nearest(str(key), known)}")
    return document


def _parse(text: str) -> tuple[Any, list[tuple[str, int]]]:
    """Return a YAML text as values, and the line of each of them as it stands there."""
    loader = _LOADER(text)
    try:
        node = loader.get_single_node()
        lines = list(_lines(node, ""))  # before merge keys are resolved
        return None if node is None else loader.construct_document(node), lines
    finally:
        loader.dispose()


def _lines(node: yaml.Node | None, key: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner = f"{key}.{name.value}" if key else str(name.value)
            yield inner, name.start_mark.line + 1
            yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, element in enumerate(node.value):
            yield f"{key}[{index}]", element.start_mark.line + 1
            yield from _lines(element, f"{key}[{index}]")
