"""Units in TOML: the words of the dataclasses, checked for what is missing or contradicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from numsim.errors import NumsimError, near_names
from numsim.formats import Format
from numsim.formats.toml import check_keys, fields_from_table, format_inline
from numsim.targets.check import key_of
from numsim.targets.levels import Level
from numsim.targets.rules import CLASSES, RULES, WIDE, Rule
from numsim.targets.words import field_words

_KINDS: dict[str, type] = {rule.__name__: rule for rule in RULES}


def fields_of_unit(
    tables: Mapping[str, Any], known: Mapping[str, bool]
) -> tuple[dict[str, Any], tuple[tuple[str, Rule], ...]]:
    """Return the fields of a unit and its rules; `known`: whether a field must be there.

    Raises
    ------
    NumsimError
        For a field that is missing or unknown, and tables that make no rule.
    """
    own = {key: value for key, value in tables.items() if key != "rules"}
    check_keys("a unit", own, known)
    if "levels" in own:
        own["levels"] = _levels(own["levels"])
    rules = tables.get("rules")
    if not isinstance(rules, dict) or not rules:
        raise NumsimError("a unit has a table [rules.CLASS] for each operand class; none came")
    return own, tuple((kind, _rule(kind, table)) for kind, table in rules.items())


def _levels(tables: Any) -> tuple[Level, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise NumsimError(f"levels are tables [[levels]] of every = ... ; got {tables!r}")
    found = []
    for table in tables:
        check_keys("[[levels]]", table, {f.name: f.default is MISSING for f in fields(Level)})
        given = {key: own_format(f"[[levels]]: {key}", key, v) for key, v in table.items()}
        found.append(Level(**given))
    return tuple(found)


def unit_to_toml(target: Any, *, comments: bool = False) -> str:
    """Return a unit as TOML; see `Target.to_toml`.

    `comments`: with the fields that are unset, and what a field means where it first appears.
    """
    lines = []
    for f in fields(target):
        value = getattr(target, f.name)
        if f.name not in ("rules", "levels") and (value != f.default or comments):
            unset = "# " if value == f.default else ""
            lines.append(unset + _line(target, f.name, value, comments))
    for level in target.levels:
        lines += ["", "[[levels]]"]
        lines += [f"{f.name} = {toml_value(getattr(level, f.name))}" for f in fields(level)]
    said: set[type] = set()
    for kind, rule in target.rules:
        new = comments and type(rule) not in said
        said.add(type(rule))
        lines += ["", f"[rules.{key_of(kind)}]"]
        words = f"  # {RULES[type(rule)].words}" if new else ""
        lines.append(f'kind = "{type(rule).__name__}"{words}')
        for f in fields(rule):
            value = getattr(rule, f.name)
            if value is not None or new:
                lines.append(("# " if value is None else "") + _line(rule, f.name, value, new))
    return "\n".join(lines) + "\n"


def _line(item: Any, name: str, value: Any, comments: bool) -> str:
    line = f"{name} = {'' if value is None else toml_value(value)}".rstrip()
    return f"{line}  # {field_words(item, name)}" if comments else line


def toml_value(value: Any) -> str:
    """Return a number, a text or a list as TOML, which JSON writes alike but for one character.

    A `Format` becomes an inline table.

    >>> toml_value("3 µs"), toml_value(chr(127) + "x")[-7:], toml_value([1, True])
    ('"3 µs"', 'u007fx"', '[1, true]')
    """
    if isinstance(value, Format):
        return format_inline(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def own_format(where: str, key: str, value: Any) -> Any:
    """Return the `Format` that an inline table under `key` describes, other values as they are.

    Raises
    ------
    NumsimError
        For a table that describes no format.
    """
    if not (isinstance(value, dict) and key in ("acc_format", "product_format")):
        return value
    try:
        return Format(**fields_from_table(value))
    except NumsimError as error:
        raise NumsimError(f"{where}: {error}") from None


def _rule(kind: str, table: Any) -> Rule:
    where = f"[rules.{key_of(kind)}]"
    scaled, rest = kind.startswith("mx:"), kind.removeprefix("mx:")
    operands, arrow, out = rest.partition("->")
    classes = tuple(CLASSES) if scaled else (*CLASSES, *WIDE)
    if operands not in classes or (arrow and (scaled or out != "float16")):
        raise NumsimError(
            f"{where}: an operand class is one of {', '.join(classes)}, with -> and float16 where "
            f"that output has a rule of its own; got {kind!r}{near_names(operands, classes)}"
        )
    if not isinstance(table, dict):
        raise NumsimError(f"{where} is a table of kind = ... and its fields; got {table!r}")
    name = table.get("kind")
    if not isinstance(name, str) or name not in _KINDS:
        raise NumsimError(
            f"{where}: kind is one of {', '.join(_KINDS)}; got {name!r}"
            f"{near_names(str(name), _KINDS)}"
        )
    given = {key: value for key, value in table.items() if key != "kind"}
    check_keys(
        f"{where}: {name}", given, {f.name: f.default is MISSING for f in fields(_KINDS[name])}
    )
    given = {key: own_format(f"{where}: {key}", key, value) for key, value in given.items()}
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    rule: Rule = _KINDS[name](**given)
    return rule
