"""Settings: frozen dataclasses, filled from recipes and ``key=value`` words, with every mistake told at once.

A setting's docstring stands under its field and is its help text. This module knows no particular setting.
"""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml

from m6rec.errors import ConfigError, nearest

T = TypeVar("T")


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
        if required and name not in chosen:
            problems.append(f"missing setting {f'{where}.{name}' if where else name!r}")
    if len(problems) > before:
        return None
    try:
        return cls(**chosen)
    except (ConfigError, ValueError) as error:
        problems.append(f"{where or cls.__name__}: {error}")
        return None


def _convert(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return _build(hint, value, path, problems)
    elif origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        trials: list[list[str]] = []
        for argument in arguments:
            if argument is not type(None):
                trial: list[str] = []
                converted = _convert(argument, value, path, trial)
                if not trial:
                    return converted
                trials.append(trial)
        problems.extend(trials[0])
        return None
    elif origin is typing.Literal:
        if value in arguments:
            return value
        problems.append(f"{path}: got {value!r}, expected one of {', '.join(map(repr, arguments))}")
        return None
    elif origin in (tuple, list) and isinstance(value, list | tuple):
        inner = arguments[0] if arguments else Any
        items = [_convert(inner, item, f"{path}[{index}]", problems) for index, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    elif origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif origin is not None and isinstance(value, Mapping):
        return dict(value)
    elif hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    problems.append(f"{path}: got {value!r}, expected {getattr(hint, '__name__', hint)}")
    return None


def assign(tree: dict[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """Return ``tree`` with ``a.b=value`` words written into it; values are read as YAML.

    >>> assign({"task": {"name": "ranking"}}, ["task.dim=64", "seed=1"])
    {'task': {'name': 'ranking', 'dim': 64}, 'seed': 1}

    Raises:
        ConfigError: a word without ``=``, or one that writes below a plain value.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise ConfigError(f"got {word!r}, expected key=value, e.g. training.epochs=3")
        *parents, last = path.split(".")
        node = result
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"{word!r} writes below {parent!r}, which holds {child!r}")
            node = child
        node[last] = _scalar(text)
    return result


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value {text!r}: {error}") from error
    # YAML 1.1 takes 1e-3 for a string; everybody who types it means a number.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def field_help(cls: type) -> dict[str, str]:
    """Return each field's docstring: the string literal that stands under it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for node, following in itertools.pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[node.target.id] = inspect.cleandoc(str(following.value.value))
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
