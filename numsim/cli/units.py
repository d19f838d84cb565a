"""The command targets: the matrix units, or everything about one of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from numsim.cli import options
from numsim.errors import NumsimError
from numsim.targets import Target, get_target, list_targets
from numsim.targets.levels import level_words
from numsim.targets.table import label
from numsim.targets.toml import unit_to_toml
from numsim.targets.types import CLASSES
from numsim.targets.words import MATURITIES, explained, rule_words
from numsim.terminal import columns, say, width


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(targets)


def targets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", autocompletion=options.completes(*options.TARGETS),
            help="Show one unit in full: a name or a .toml file; or the units with this part.",
        ),
    ] = None,
    toml: Annotated[
        bool, typer.Option("--toml", help="Print the unit as TOML, to edit; give it another name.")
    ] = False,
) -> None:  # fmt: skip
    """List the matrix units, or everything about one of them."""
    if name is None:
        if toml:
            raise NumsimError("targets: --toml prints one unit; got no NAME; try targets ideal.mac")
        _print_units(list_targets())
        return
    found = options.matching(name, list_targets())
    if name in list_targets() or name.endswith(".toml") or not found:
        found = [name]
    if len(found) > 1:
        if toml:
            raise NumsimError(
                f"targets: --toml prints one unit; {name!r} is part of {', '.join(found)}; name one"
            )
        _print_units(found)
        return
    unit = get_target(found[0])
    say(unit_to_toml(unit, comments=True) if toml else target_text(unit), nl=not toml)


def _print_units(names: Sequence[str]) -> None:
    """Print units as lines, and what their words mean."""
    say("\n".join(unit_lines(names, width())))
    say("maturity (numsim targets NAME: one unit in full; a .toml file is a unit too):")
    found = dict.fromkeys(get_target(name).maturity for name in names)
    for word in (w for w in MATURITIES if w in found):
        say(textwrap.fill(MATURITIES[word], **_page(f"  {word:<11} ", " " * 14)))


def _page(first: str, rest: str) -> dict[str, Any]:
    long = max(width(), 40)
    return {
        "width": long, "initial_indent": first, "subsequent_indent": rest,
        "break_long_words": False, "break_on_hyphens": False,
    }  # fmt: skip


def unit_lines(names: Sequence[str], within: int) -> list[str]:
    r"""Return units as lines: what they multiply, and the evidence where there is room.

    Examples
    --------
    >>> print("\n".join(unit_lines(["x86.vpdpwssd", "x86.vpdpbusd"], 80)))
    name         maturity operands evidence
    x86.vpdpwssd silicon  int16    recorded on AMD EPYC, family 25 model 17
    x86.vpdpbusd silicon  u8s8     recorded on AMD EPYC, family 25 model 17
    """
    rows = [("name", "maturity", "operands", "evidence")]
    for name in names:
        unit = get_target(name)
        kinds = dict.fromkeys(kind.partition("->")[0] for kind, _ in unit.rules)
        scaled = [kind.removeprefix("mx:") for kind in kinds if kind.startswith("mx:")]
        words = [kind for kind in kinds if not kind.startswith("mx:")]
        words += ["mx:" + ",".join(scaled)] if scaled else []
        rows.append((name, unit.maturity, " ".join(words), unit.evidence))
    return columns(rows, "<<<<", within=within, gap="  " if within > 80 else " ")


def target_text(unit: Target) -> str:
    """Return everything about a unit as text.

    Examples
    --------
    >>> print(target_text(get_target("x86.tdpbssd")))
    x86.tdpbssd
      maturity       document
      evidence       pseudocode: no saturation
      source         Intel 64 and IA-32 SDM, volume 2
      s8             IntSum(acc_bits=32, overflow='wrap', group=4, outer_bits=32)
                     int8
    what the words mean (numsim targets NAME --toml prints a unit to edit)
      document        written from the vendor's text; no recording confirms it (warns once ...)
      IntSum          integer products added in an accumulator of acc_bits bits
        acc_bits      bits of the accumulator, two's complement
        overflow      wrap modulo 2**acc_bits, saturate after every step, or raise an error
        group         products in one step; longer dot products chain steps through the accumulator
        pair_bits     the sum of two neighbouring products saturates to so many bits; unset: no
        outer_bits    bits of the accumulator that adds the parts of promote_every and split_k
      Target          fields of whole dot products
        promote_every restart from +0 every so many k, add the parts in an outer accumulator
        split_k       parts of K that are summed apart and added afterwards
        split_order   contiguous runs of tiles; or tiles dealt out in turn, added serial or pairwise
        split_tile    width of those tiles in k
        kind          products with block scales, by their PTX name; unset: what the operands mean
        levels        adders above the rule: each restarts what is below it every so many k
    """
    changed = "" if label(unit) == unit.name else f" (of {unit.name} without the changes)"
    rows = [
        ("maturity", unit.maturity + changed),
        ("evidence", unit.evidence),
        ("source", unit.source),
    ]
    rows += _chain_words(unit)
    for kind, rule in unit.rules:
        operands = kind.removeprefix("mx:").partition("->")[0]
        rows.append((kind, rule_words(rule)))
        if operands in CLASSES:
            scaled = ", with block scales inside the unit" if kind.startswith("mx:") else ""
            rows.append(("", ", ".join(CLASSES[operands]) + scaled))
    words = [(unit.maturity, MATURITIES[unit.maturity]), *explained(unit)]
    head = "what the words mean (numsim targets NAME --toml prints a unit to edit)"
    return "\n".join([label(unit), _aligned(rows), head, _aligned(words)])


def _aligned(rows: list[tuple[str, str]]) -> str:
    width = max(14, *(len(key) for key, _ in rows))
    return "\n".join(f"  {key:<{width}} {value}".rstrip() for key, value in rows)


def _chain_words(unit: Target) -> list[tuple[str, str]]:
    """Return the fields about whole dot products that say something."""
    rows = []
    if unit.promote_every is not None:
        rows.append(("promote_every", str(unit.promote_every)))
    if unit.split_k > 1:
        rows.append(("split_k", f"{unit.split_k} {unit.split_order}, tiles of {unit.split_tile}"))
    if unit.levels:
        rows.append(("levels", "; ".join(level_words(level) for level in unit.levels)))
    if unit.kind is not None:
        rows.append(("kind", unit.kind))
    return rows
