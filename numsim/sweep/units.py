"""Units of a sweep: names, files, and fields whose values are cases of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from numsim.errors import NumsimError
from numsim.files import digest_of
from numsim.targets import Target, get_target, list_targets
from numsim.targets.table import label


def split_targets(text: str) -> list[str]:
    """Return the units of a list with commas, each with the values of its fields.

    Examples
    --------
    >>> split_targets("ideal.int:acc_bits=16,20:overflow=wrap,ideal.fp32")
    ['ideal.int:acc_bits=16,20:overflow=wrap', 'ideal.fp32']
    """
    found: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        head = word.partition(":")[0]
        value = found and ":" in found[-1] and not head.endswith(".toml") and "." not in head
        if value:
            found[-1] += f",{word}"
        elif word:
            found.append(word)
    return found


def with_fields(given: str | Target) -> list[tuple[str, Target]]:
    """Return the units that one word stands for: ``ideal.int:acc_bits=16,20`` are two.

    Raises
    ------
    NumsimError
        A unit, a field or a value that there is not.

    Examples
    --------
    >>> [called for called, _ in with_fields("ideal.int:acc_bits=16,32")]
    ['ideal.int:acc_bits=16', 'ideal.int']
    """
    if not isinstance(given, str) or ":" not in given or Path(given).is_file():
        unit = get_target(given)
        return [(label(unit), unit)]
    name, *parts = given.split(":")
    fields: dict[str, list[Any]] = {}
    for part in parts:
        key, sign, values = part.partition("=")
        if not sign or not values:
            raise NumsimError(
                f"sweep: targets: a field of a unit is NAME=VALUE; got {part!r} in {given!r:.80}; "
                "write ideal.int:acc_bits=16,20"
            )
        fields[key.strip()] = [_value(word.strip()) for word in values.split(",")]
    base, found = get_target(name.strip()), []
    for point in product(*fields.values()):
        changes = dict(zip(fields, point, strict=True))
        unit = base.changed(**_renamed(changes))
        words = "".join(f":{key}={_word(value)}" for key, value in changes.items())
        found.append((label(base) if unit == base else f"{label(base)}{words}", unit))
    return found


def _renamed(changes: dict[str, Any]) -> dict[str, Any]:
    return {"promote_every" if key == "rows" else key: value for key, value in changes.items()}


def _value(word: str) -> Any:
    """Return what a word stands for: a whole number, true, false, none, or itself."""
    if re.fullmatch(r"-?\d{1,9}", word):
        return int(word)
    return {"none": None, "true": True, "false": False}.get(word.lower(), word)


def _word(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def units_of(targets: Iterable[str | Target]) -> list[tuple[str, str, Target]]:
    """Return what results call each unit, a digest where it is no named one, and the unit.

    A unit of a file goes by its own name, by the file where another one of them has that name.
    """
    units = [(given, *one) for given in targets for one in with_fields(given)]
    found = []
    for given, called, unit in dict.fromkeys(units):
        digest = digest_of(unit.to_toml())
        if any(name == called and other != unit for _, name, other in units):
            called = given if isinstance(given, str) else f"{called} {digest[:8]}"
        found.append((called, "" if label(unit) in list_targets() else digest, unit))
    return found
