"""Blackwell's FP4 with block scales: the kernels, and which chains each covers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.gemm import fp4 as gemm_fp4
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
from numsim.targets.rules.scaled_fp4 import run_scales, scale_meaning
from numsim.targets.tensor import (
    batched,
    lines_with,
)


def fp4_applies(a: QTensor, b: QTensor) -> bool:
    """Whether this path has a vector kernel for FP4 with block scales."""
    return simd.path() != "plain" and bool(a.codes.size and b.codes.size)


def fp4(
    a: QTensor, b: QTensor, c: NDArray[np.float32] | None, rule: ScaledFp4
) -> NDArray[np.float32]:
    """Blackwell's k = 64 block-scaled FP4; a NaN scale makes all of its line NaN."""
    means_a, means_b = scale_meaning(a), scale_meaning(b)
    twice = (a.fmt.values() * 2).astype(np.int8)
    scales_a = run_scales(a, transposed=False)
    own = gemm_fp4.ScaleCodes(scales_a, means_a.exponents, means_a.significands)

    def pack() -> tuple[gemm_fp4.PackedFp4, NDArray[np.bool_]]:
        codes = run_scales(b, transposed=True)
        scales = gemm_fp4.ScaleCodes(codes, means_b.exponents, means_b.significands)
        return gemm_fp4.pack_b(batched(b.codes), scales), lines_with(codes, means_b.nan)

    packed, nan_columns = kept(b, "fp4", pack)
    fraction = means_a.fraction + means_b.fraction
    sums = gemm_fp4.gemm_fp4(
        batched(a.codes), own, packed, twice, fraction, rule.align_bits, rule.min_exponent, c=c
    )  # fmt: skip
    nan_rows = lines_with(scales_a, means_a.nan)
    if nan_rows.any() or nan_columns.any():
        sums[nan_rows[:, :, None] | nan_columns[:, None, :]] = np.nan
    return sums


def _vectors(x: Chain) -> Work | None:
    if not fp4_applies(x.a, x.b):
        return None
    return Work("runs of scaled FP4", lambda: one_nan(fp4(x.a, x.b, x.c, x.rule), x.rule))


SCALED_FP4: Ways = (_vectors,)
