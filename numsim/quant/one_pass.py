"""Blocks in one pass over memory: scales that are powers of two, and four bits in all ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.dispatch.blocks import Stored, covers_blocks, encode_blocks, laid
from numsim.dispatch.rows import NarrowRows, Rows, hif4_rows, narrow_rows, power_rows
from numsim.formats import Format, get_format
from numsim.kernels.convert.block_codes import Power
from numsim.kernels.ir import simd
from numsim.quant.extremes import PART, pieces_of
from numsim.quant.four_bits import HALVES, QUARTERS
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import CHOICE_RULES, POW2_FORMATS, has_two_levels
from numsim.quant.scales import largest_scale, power_of
from numsim.quant.types import QTensor

Array = NDArray[Any]
_E2M1 = get_format("float4_e2m1fn")


class Way(NamedTuple):
    """How a rule's blocks are stored in one pass."""

    rows: Rows  # float32 along rows, the whole tensor
    of: Power | NarrowRows  # what does it in parts
    block: int
    coded: Format | None  # of the codes; None: the rule's own, as equal rules share a way
    scale_format: Format | None
    has_above: bool

    def fmt(self, rule: Quant) -> Format:
        """Return the format of the codes."""
        return rule.fmt if self.coded is None else self.coded

    def tensor(
        self, rule: Quant, sizes: tuple[int, ...], made: Stored, above: float
    ) -> QTensor:  # fmt: skip
        """Return what was stored."""
        return QTensor(
            made.codes, self.fmt(rule), made.scales, rule, sizes,
            None if self.scale_format is None else made.scale_codes, self.scale_format,
            np.asarray(above, np.float32) if self.has_above else None,
        )  # fmt: skip


def far_below(rule: Quant) -> bool:
    """Whether what float32 rounds of x / 2**n, below its normal numbers, cannot change a code.

    Nothing there is near half of the format's least step; rounding up or down would see it. A table
    may have a middle of two values there, and a format without zero tells what lost it from zero.
    """
    f = rule.fmt
    around = rule.rounding in ("rne", "rna", "rtz") and f.kind != "table" and f.zero
    return around and f.min_normal >= 2.0**-60 and f.bits <= 16


@lru_cache(maxsize=256)
def way_of(rule: Quant, wide: bool) -> Way | None:
    """Return how a rule's blocks are stored in one pass; None: the general way stores them.

    `wide`: with AVX-512.
    """
    usual = rule.rounding == "rne" and rule.overflow == "saturate" and rule.scale is None
    if not usual or not isinstance(rule.block, int):
        return None
    if rule.scale_format in POW2_FORMATS:
        power = power_of(rule.fmt, str(rule.scale_rule))
        rows = None if power is None else power_rows(rule.fmt, power, wide)
        if power is None or rows is None or not far_below(rule):
            return None
        f = None if rule.scale_format == "pow2" else get_format(rule.scale_format)
        return Way(rows, power, rule.block, None, f, False)
    if rule.scale_rule == "hif4":
        three = hif4_rows()
        return Way(
            three.store, three, rule.block, QUARTERS, get_format(rule.scale_format), False
        )  # fmt: skip
    chooses = rule.scale_rule in CHOICE_RULES and rule.block % 16 == 0
    two = has_two_levels(rule.scale_format) and (chooses or rule.scale_rule == "amax")
    if not two or rule.fmt != _E2M1 or rule.above == "per_token":
        return None
    f, most = get_format(rule.scale_format), largest_scale(rule)
    reach = 0.0 if rule.above is None else rule.fmt.max * most
    narrow = narrow_rows(f, reach, str(rule.scale_rule), wide)
    if narrow is None or most < f.min_normal:  # else the least scale may leave float32
        return None
    coded = HALVES if rule.scale_rule == "if4" else None
    return Way(narrow.store, narrow, rule.block, coded, f, rule.above is not None)


def in_one_pass(
    x: Array, rule: Quant, sizes: tuple[int, ...], axis: int, done: Callable[[], object]
) -> QTensor | None:
    """Return x stored by a rule of blocks; None where the general way does it, or refuses.

    `done` is called after each piece of x.
    """
    way = way_of(rule, simd.enabled())
    if way is None or not covers_blocks(x, axis, way.block):
        return None
    grid = tuple(-(-n // size) for n, size in zip(x.shape, sizes, strict=True))
    codes = np.empty(x.shape, way.fmt(rule).code_dtype)
    made = Stored(codes, np.empty(grid, np.float32), np.empty(grid, np.uint8))
    parts = []
    for part in pieces_of(x.shape, sizes, PART):
        each = slice(part.start // sizes[0], -(-part.stop // sizes[0]))
        parts.append((x[part], Stored(codes[part], made.scales[each], made.scale_codes[each])))
    if isinstance(way.of, NarrowRows):
        above = _two_levels(way.of, parts, axis, way.block, done)
        return None if above < 0 else way.tensor(rule, sizes, made, above)
    for some, filled in parts:
        if not encode_blocks(rule.fmt, some, axis, way.block, way.of, filled):
            return None
        done()
    return way.tensor(rule, sizes, made, 1.0)


def _two_levels(
    rows: NarrowRows, parts: list[tuple[Array, Stored]], axis: int, block: int,
    done: Callable[[], object],
) -> float:  # fmt: skip
    """Store parts in four bits; return the scale above, -1 where the general way does it."""
    if not parts[0][0].size:
        return -1.0
    each: list[tuple[Array, int, Array, Array, Array]] = []
    for some, filled in parts:
        kind, lines, found, (codes,), *_ = laid(some, axis, block, filled[1:], filled[:1])
        if lines.ndim != 2:
            return -1.0
        each.append((lines, kind, codes, found[0], found[1]))
    if len(each) == 1:
        above = rows.store(*each[0])
        done()
        return above
    most = 0
    for lines, kind, *_ in each:
        most = max(most, rows.largest(lines, kind))
        done()
    above = rows.above(most)
    for lines, kind, codes, scales, bytes_ in each:
        if above < 0 or not rows.under(lines, kind, above, codes, scales, bytes_):
            return -1.0
        done()
    return above
