"""Settings: frozen dataclasses, filled from recipes and ``key=value`` words, with every mistake told at once.

A setting's docstring stands under its field and is its help text. This module knows no particular setting.
"""

import ast
import copy
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from m6rec.errors import ConfigError, nearest

T = TypeVar("T")

# What a bare word in key=value is besides text. Not YAML 1.1's own rules: those make a bool of "no", a date of
# 2024-01-01, 90 of 1:30 and 8 of 010, but text of 1e-3.
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False, "True": True, "False": False, "None": None}
_INTEGER = re.compile(r"[-+]?(0|[1-9]\d*)")
_NUMBER = re.compile(r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def parse(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Fill a config dataclass from plain values.

    Args:
        cls: a dataclass; nested dataclass fields take nested mappings.
        values: field name -> plain value, as YAML gives it.
        where: dotted prefix for messages.

    Raises:
        ConfigError: lists every unknown key (with the nearest name), wrong type and missing value at once.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Train:
    ...     steps: int = 10
    >>> parse(Train, {"steps": 3}).steps
    3
    >>> parse(Train, {"stepz": 3})
    Traceback (most recent call last):
    m6rec.errors.ConfigError: unknown setting 'stepz'; did you mean steps? (known: steps)
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__}: got {values!r}, expected a mapping of settings")
    problems: list[str] = []
    built = _build(cls, values, where, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return typing.cast(T, built)


def _build(cls: type, values: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    chosen: dict[str, Any] = {}
    before = len(problems)
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            problems.append(f"unknown setting {path!r}{nearest(str(key), fields)}")
            continue
        chosen[key] = _convert(hints[key], value, path, problems)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            problems.append(f"missing setting {f'{where}.{name}' if where else name!r}")
    if len(problems) > before:
        return None
    try:
        return cls(**chosen)
    except (ConfigError, ValueError) as error:
        problems.append(f"{where or cls.__name__}: {error}")
        return None


def _convert(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return _convert_union(hint, value, path, problems)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _build(kind, value, path, problems)
    if kind in (tuple, list, Sequence) and isinstance(value, list | tuple):
        hints = _item_hints(kind, arguments, len(value))
        if hints is not None:
            items = [
                _convert(hint, item, f"{path}[{index}]", problems)
                for index, (hint, item) in enumerate(zip(hints, value, strict=True))
            ]
            return items if kind is list else tuple(items)
    elif kind in (dict, Mapping) and isinstance(value, Mapping):
        inner = arguments[1] if arguments else Any
        return {key: _convert(inner, item, f"{path}.{key}", problems) for key, item in value.items()}
    elif kind is typing.Literal:
        # By type too: True is no 1, although Python calls them equal.
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value
    elif (found := _convert_plain(kind, value)) is not None or (value is None and kind in (Any, type(None))):
        return found
    problems.append(_mismatch(hint, value, path))
    return None


def _convert_plain(kind: Any, value: Any) -> Any:
    """Return a value of a type without parts, or ``None`` where it does not fit."""
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            if isinstance(value, str) and value.endswith("%"):
                return float(value[:-1]) / 100
            return float(value)  # words too: plain YAML 1.1 reads 1e-3 as one
        except ValueError:
            return None
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e4
    fits = isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    return value if fits else None


def _convert_union(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    inner: list[str] = []
    for argument in typing.get_args(hint):
        trial: list[str] = []
        converted = _convert(argument, value, path, trial)
        if not trial:
            return converted
        if trial != [_mismatch(argument, value, path)]:
            inner = inner or trial
    # What is wrong inside a mapping or list says more than that it is none of the alternatives.
    problems.extend(inner or [_mismatch(hint, value, path)])
    return None


def _mismatch(hint: Any, value: Any, path: str) -> str:
    return f"{path}: got {value!r}, expected {_describe(hint)}"


def _item_hints(kind: Any, arguments: tuple[Any, ...], length: int) -> list[Any] | None:
    """Return the type of each item of a sequence, or ``None`` where it must have another length."""
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return list(arguments) if len(arguments) == length else None
    return [arguments[0] if arguments else Any] * length


def _describe(hint: Any) -> str:
    """Return what a type takes, in the words of a recipe.

    >>> _describe(int | typing.Literal["epoch"] | None), _describe(tuple[int, ...]), _describe(tuple[float, float])
    ("int, 'epoch' or null", 'a list of int, e.g. [a, b]', 'a list [float, float]')
    """
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        words = [_describe(argument) for argument in arguments]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if kind is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}" if len(arguments) > 1 else repr(arguments[0])
    if kind in (tuple, list, Sequence):
        if kind is tuple and arguments and arguments[-1] is not Ellipsis:
            return f"a list [{', '.join(map(_describe, arguments))}]"
        return f"a list{f' of {_describe(arguments[0])}' if arguments else ''}, e.g. [a, b]"
    if kind in (dict, Mapping) or dataclasses.is_dataclass(kind):
        return "a mapping"
    return "null" if kind is type(None) else str(getattr(kind, "__name__", kind))


def assign(tree: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """Return ``tree`` with ``a.b=value`` words written into it; ``tree`` itself stays as it is.

    A value that begins with a bracket or a quote is read as YAML. Any other one is a number, ``true``, ``false``,
    ``null`` (or nothing), or else the text as it stands: ``title #1``, ``no`` and ``2024-01-01`` are texts.

    >>> assign({"task": {"name": "ranking"}}, ["task.dim=64", "lr=1e-3", "ks=[5, 10]"])
    {'task': {'name': 'ranking', 'dim': 64}, 'lr': 0.001, 'ks': [5, 10]}

    Raises:
        ConfigError: a word without ``=``, or one that writes below a plain value.
    """
    result = copy.deepcopy(dict(tree))
    for word in words:
        path, equals, text = word.partition("=")
        *parents, last = path.strip().split(".")
        if not equals or not all((*parents, last)):
            raise ConfigError(f"got {word!r}, expected key=value, e.g. training.num_epochs=3")
        node = result
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            if not isinstance(node[parent], dict):
                raise ConfigError(f"{word!r} writes below {parent!r}, which holds {node[parent]!r}")
            node = node[parent]
        node[last] = read_word(text.strip())
    return result


def read_word(text: str) -> Any:
    """Read one word of a command line: a number, true, false, null, a bracketed YAML value, or else plain text.

    >>> read_word("1e-3"), read_word("null"), read_word("[1, 2]"), read_word("no")
    (0.001, None, [1, 2], 'no')
    """
    if text[:1] in tuple("[{\"'"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"cannot read the value {text!r}: {error}; close its brackets and quotes") from error
    if text in _WORDS:
        return _WORDS[text]
    return (int if _INTEGER.fullmatch(text) else float)(text) if _NUMBER.fullmatch(text) else text


def field_help(cls: type) -> dict[str, str]:
    """Return each field's docstring: the string literal that stands under it, in the class or in one it inherits."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            found |= _own_field_help(owner)
    return found


def _own_field_help(cls: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for node, following in itertools.pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[node.target.id] = inspect.cleandoc(following.value.value)
    return found


def plain(value: Any) -> Any:
    """Return a config (or any nest of them) as what YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
