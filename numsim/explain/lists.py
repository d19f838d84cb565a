"""Formats and recipes as lines of a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from numsim.decimals import short_text
from numsim.formats import get_format
from numsim.quant import QUANTS
from numsim.terminal import columns


def list_lines(names: Iterable[str], within: int) -> list[str]:
    r"""Return formats, then recipes of blocks, as lines, the integers of a kind in one.

    Parameters
    ----------
    names
        Names of formats and of recipes.
    within
        Columns of the terminal; the sources of formats are named where there is room.

    Examples
    --------
    >>> print("\n".join(list_lines(["bfloat16", "int2", "int3", "int4", "nvfp4"], 80)))
    name         bits precision bias           max   smallest Inf NaN
    bfloat16       16         8  127 3.3895314e+38 9.1835e-41 yes yes
    int2 to int4    n       n-1    0    2**(n-1)-1          1
    recipe  block  element        scale          scale rule
    nvfp4      16  float4_e2m1fn  float8_e4m3fn  amax
    """
    every = [*names]
    formats = [name for name in every if name not in QUANTS]
    recipes = [name for name in every if name in QUANTS]
    lines = _format_lines(formats, within) if formats else []
    return lines + (_recipe_lines(recipes, within) if recipes else [])


def _format_lines(names: Sequence[str], within: int) -> list[str]:
    heading = ("name", "bits", "precision", "bias", "max", "smallest", "Inf", "NaN", "source")
    rows: list[tuple[str, ...]] = [heading]
    at = 0
    while at < len(names):
        end = at + 1
        while end < len(names) and _follows(names[end - 1], names[end]):
            end += 1
        f = get_format(names[at])
        if end - at > 1:
            many, powers = f"{names[at]} to {names[end - 1]}", ("n-1", "2**(n-1)-1")
            bits = ("n", *(powers if f.signed else ("n", "2**n-1")))
            rows.append((many, bits[0], bits[1], "0", bits[2], "1", "", "", f.source))
        else:
            rows.append((
                f.name, str(f.bits), str(f.precision), str(f.bias), short_text(f.max),
                short_text(f.min_subnormal), "yes" if f.has_inf else "", "yes" if f.has_nan else "",
                f.source,
            ))  # fmt: skip
        at = end
    return columns(rows, "<>>>>>>><", within=within, gap="  " if within > 80 else " ")


def _follows(name: str, after: str) -> bool:
    """Whether two names are those of integers, the second one bit wider."""
    pair = [re.fullmatch(r"(u?int)(\d+)", text) for text in (name, after)]
    one, two = pair
    return bool(one and two and one[1] == two[1] and int(one[2]) + 1 == int(two[2]))


def _recipe_lines(names: Sequence[str], within: int) -> list[str]:
    rows = [("recipe", "block", "element", "scale", "scale rule")]
    rows += [
        (name, str(q.block), q.fmt.name, str(q.scale_format), str(q.scale_rule))
        for name, q in ((name, QUANTS[name]) for name in names)
    ]
    return columns(rows, "<><<<", within=within)
