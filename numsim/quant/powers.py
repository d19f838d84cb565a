"""Blocks under power-of-two scales by amax, in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.dispatch.blocks import Stored, covers_blocks, encode_blocks
from numsim.formats import get_format
from numsim.quant.extremes import PART, pieces_of
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import POW2_FORMATS
from numsim.quant.scales import power_of
from numsim.quant.types import QTensor


def far_below(rule: Quant) -> bool:
    """Whether what float32 rounds of x / 2**n, below its normal numbers, cannot change a code.

    Nothing there is near half of the format's least step; rounding up or down would see it. A table
    may have a middle of two values there, and a format without zero tells what lost it from zero.
    """
    f = rule.fmt
    around = rule.rounding in ("rne", "rna", "rtz") and f.kind != "table" and f.zero
    return around and f.min_normal >= 2.0**-60 and f.bits <= 16


def in_one_pass(
    x: NDArray[Any], rule: Quant, sizes: tuple[int, ...], axis: int, done: Callable[[], object]
) -> QTensor | None:
    """Return x stored under power-of-two scales; None where the general way does it, or refuses.

    `done` is called after each piece of x.
    """
    usual = rule.rounding == "rne" and rule.overflow == "saturate" and isinstance(rule.block, int)
    if not usual or rule.scale_format not in POW2_FORMATS or not far_below(rule):
        return None
    power = power_of(rule.fmt, str(rule.scale_rule))
    if power is None or not covers_blocks(x, axis, sizes[axis]):
        return None
    grid = tuple(-(-n // size) for n, size in zip(x.shape, sizes, strict=True))
    codes = np.empty(x.shape, rule.fmt.code_dtype)
    scales, scale_codes = np.empty(grid, np.float32), np.empty(grid, np.uint8)
    for part in pieces_of(x.shape, sizes, PART):
        each = slice(part.start // sizes[0], -(-part.stop // sizes[0]))
        made = Stored(codes[part], scales[each], scale_codes[each])
        if not encode_blocks(rule.fmt, x[part], axis, sizes[axis], power, made):
            return None
        done()
    if rule.scale_format == "pow2":
        return QTensor(codes, rule.fmt, scales, rule, sizes)
    f = get_format(rule.scale_format)
    return QTensor(codes, rule.fmt, scales, rule, sizes, scale_codes, f)
