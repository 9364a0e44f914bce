"""Command-line flags made from config dataclasses: ``--k-core 5`` fills ``k_core``, its docstring is the help.

Knows typer's leftover words only; no particular setting.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from m6rec.config import field_help, parse, read_word
from m6rec.errors import ConfigError, nearest


def parse_flags(
    words: Sequence[str], configs: Mapping[str, type], aliases: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Fill several configs from one list of words.

    Args:
        words: ``["--user", "who", "--k-core=5"]``.
        configs: name -> dataclass; a flag goes to every one that has its field.
        aliases: flag -> field, e.g. ``{"from": "path"}``.

    Returns:
        Name -> filled config.

    Raises:
        ConfigError: an unknown flag (with the nearest), a flag without a value, or a wrong value; all at once.
    """
    owners: dict[str, list[str]] = {}
    for name, cls in configs.items():
        for field in dataclasses.fields(cls):
            owners.setdefault(field.name, []).append(name)
    values: dict[str, dict[str, Any]] = {name: {} for name in configs}
    problems: list[str] = []
    for flag, text in _pairs(words):
        field_name = (aliases or {}).get(flag, flag.replace("-", "_"))
        if field_name not in owners:
            known = ["--" + _flag(name, aliases) for name in owners]
            problems.append(f"unknown flag '--{flag}'{nearest('--' + flag, known)}")
            continue
        for owner in owners[field_name]:
            values[owner][field_name] = _value(text, configs[owner], field_name)
    chosen: dict[str, Any] = {}
    for name, cls in configs.items():
        missing = [field for field in _required(cls) if field not in values[name]]
        problems += [f"missing flag --{_flag(field, aliases)}: {_help(cls, field)}" for field in missing]
        try:
            chosen[name] = None if missing else parse(cls, values[name])
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return chosen


def flag_help(configs: Mapping[str, type], aliases: Mapping[str, str] | None = None) -> list[tuple[str, str, str]]:
    """Return (flag, default, help) of every field; of one that several configs have, the first's."""
    rows: dict[str, tuple[str, str, str]] = {}
    for cls in configs.values():
        for field in dataclasses.fields(cls):
            default = "" if field.default in (dataclasses.MISSING, None) else str(field.default)
            flag = f"--{_flag(field.name, aliases)}"
            rows.setdefault(flag, (flag, default, _help(cls, field.name)))
    return list(rows.values())


def _help(cls: type, name: str) -> str:
    return " ".join(field_help(cls).get(name, "").split())


def _required(cls: type) -> list[str]:
    unset = dataclasses.MISSING
    return [field.name for field in dataclasses.fields(cls) if field.default is field.default_factory is unset]


def _flag(field: str, aliases: Mapping[str, str] | None) -> str:
    named = [flag for flag, target in (aliases or {}).items() if target == field]
    return named[0] if named else field.replace("_", "-")


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"got {word!r}, expected a flag such as --user COLUMN")
        flag, equals, text = word[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"flag --{flag} has no value")
            text = rest.pop(0)
        pairs.append((flag, text))
    return pairs


def _value(text: str, cls: type, name: str) -> Any:
    """Read a flag's text; a field that takes words takes them as they are."""
    hint = next(field.type for field in dataclasses.fields(cls) if field.name == name)
    if hint in (str, str | None):
        return text
    listed = "," in text and text[:1] not in "[\"'"
    return [read_word(part) for part in text.split(",")] if listed else read_word(text)
