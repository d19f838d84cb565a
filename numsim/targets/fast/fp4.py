"""Blackwell's FP4 with block scales: the kernels, and which chains each covers."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format
from numsim.kernels.gemm import fp4 as gemm_fp4
from numsim.kernels.gemm.fp4 import RUN
from numsim.kernels.gemm.scales import Scales
from numsim.kernels.ir import simd
from numsim.quant import QTensor
from numsim.quant.kept import kept
from numsim.targets.chain import (
    Chain,
    Ways,
    Work,
    one_nan,
)
from numsim.targets.rules import ScaledFp4
from numsim.targets.rules.scaled_fp4 import scale_meaning
from numsim.targets.tensor import batched, block_scales, nan_lines


def fp4_applies(a: QTensor, b: QTensor) -> bool:
    """Whether this path has a vector kernel for FP4 with block scales."""
    return simd.path() != "plain" and bool(a.codes.size and b.codes.size)


def fp4(
    a: QTensor, b: QTensor, c: NDArray[np.float32] | None, rule: ScaledFp4
) -> NDArray[np.float32]:
    """Blackwell's k = 64 block-scaled FP4; a NaN scale makes all of its line NaN."""
    own, fraction_a = _scales(a, transposed=False)

    def pack() -> tuple[gemm_fp4.PackedFp4, Scales, int]:
        scales, fraction = _scales(b, transposed=True)
        return gemm_fp4.pack_b(batched(b.codes), scales), scales.codes, fraction

    packed, columns, fraction_b = kept(b, "fp4", pack)
    sums = gemm_fp4.gemm_fp4(
        batched(a.codes), own, packed, _twice(a.fmt), fraction_a + fraction_b, rule.align_bits,
        rule.min_exponent, c=c,
    )  # fmt: skip
    if c is None and not (own.codes.nan or columns.nan):
        return sums  # without NaN
    return one_nan(nan_lines(sums, own.codes, columns), rule)


def _scales(q: QTensor, *, transposed: bool) -> tuple[gemm_fp4.ScaleCodes, int]:
    """Return the scales of an operand by their codes, and fraction bits of their significands."""
    meaning = scale_meaning(q)
    codes = block_scales(q, RUN, transposed=transposed, magnitude=meaning.magnitude)
    return gemm_fp4.ScaleCodes(codes, meaning.exponents, meaning.significands), meaning.fraction


@cache
def _twice(f: Format) -> NDArray[np.int8]:
    return (f.values() * 2).astype(np.int8)


def _vectors(x: Chain) -> Work | None:
    if not fp4_applies(x.a, x.b):
        return None
    return Work("runs of scaled FP4", lambda: fp4(x.a, x.b, x.c, x.rule))


SCALED_FP4: Ways = (_vectors,)
