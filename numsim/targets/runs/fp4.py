"""Blackwell's FP4 with block scales: the kernels, and which chains each covers."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.gemm import fp4 as gemm_fp4
from numsim.kernels.ir import simd
from numsim.kernels.jit import over_items
from numsim.kernels.rules import scaled_fp4
from numsim.quant import QTensor
from numsim.quant.types import decoded
from numsim.targets.runs.chain import (
    Chain,
    Ways,
    Work,
    item,
    one_nan,
    shape,
    store,
)
from numsim.targets.runs.tensor import (
    any_of,
    as_float64,
    batched,
    kept,
)
from numsim.targets.types import ScaledFp4


class ScaleMeaning(NamedTuple):
    """What each of 256 codes of a scale means to the FP4 unit.

    `significands` are integers with `fraction` fraction bits.
    """

    significands: NDArray[np.int32]
    exponents: NDArray[np.int32]
    nan: NDArray[np.bool_]
    fraction: int


@cache
def _scale_meaning(e8m0: bool) -> ScaleMeaning:
    codes = np.arange(256, dtype=np.int32)
    if e8m0:
        return ScaleMeaning(np.ones_like(codes), codes - 127, codes == 255, 0)
    magnitude = codes & 0x7F  # the unit ignores the sign of an E4M3 scale
    field = magnitude >> 3
    significands = np.where(field > 0, 8, 0).astype(np.int32) + (magnitude & 7)
    return ScaleMeaning(significands, np.maximum(field, 1) - 7, magnitude == 0x7F, 3)


def scale_meaning(q: QTensor) -> ScaleMeaning:
    """Return how the FP4 unit reads the scales of a tensor."""
    return _scale_meaning(q.scale_format is not None and q.scale_format.name == "float8_e8m0fnu")


def run_scales(q: QTensor, *, transposed: bool) -> NDArray[np.uint8]:
    """Return the scale codes of every run of 16 k, [batch, lines, runs]."""
    assert q.scale_codes is not None
    assert q.block_shape is not None
    codes = batched(q.scale_codes.view(np.uint8))
    codes = codes.transpose(0, 2, 1) if transposed else codes
    depth = q.shape[-2 if transposed else -1]
    runs = -(-depth // scaled_fp4.RUN)
    return np.repeat(codes, max(q.block_shape) // scaled_fp4.RUN, axis=-1)[..., :runs]


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
        return gemm_fp4.pack_b(batched(b.codes), scales), any_of(means_b.nan[codes])

    packed, nan_columns = kept(b, "fp4", pack)
    fraction = means_a.fraction + means_b.fraction
    sums = gemm_fp4.gemm_fp4(
        batched(a.codes), own, packed, twice, fraction, rule.align_bits, c=c
    )  # fmt: skip
    nan_rows = any_of(means_a.nan[scales_a])
    if nan_rows.any() or nan_columns.any():
        sums[nan_rows[:, :, None] | nan_columns[:, None, :]] = np.nan
    return sums


def _vectors(x: Chain) -> Work | None:
    if not fp4_applies(x.a, x.b):
        return None
    return Work("runs of scaled FP4", lambda: one_nan(fp4(x.a, x.b, x.c, x.rule), x.rule))


def scale_planes(q: QTensor, *, transposed: bool) -> tuple[tuple[NDArray[Any], ...], int]:
    """Split scale codes for every run of 16: significand, exponent, whether NaN; fraction bits."""
    codes = run_scales(q, transposed=transposed)
    meaning = scale_meaning(q)
    parts = (meaning.significands, meaning.exponents, meaning.nan)
    return tuple(part[codes].astype(part.dtype) for part in parts), meaning.fraction


def _fp4(x: Chain) -> Work:
    """Blackwell's k = 64 block-scaled FP4, run by run: the definition."""

    def twice(q: QTensor, transposed: bool) -> NDArray[np.int8]:
        values = batched(decoded(q) * 2)
        return np.ascontiguousarray(values.transpose(0, 2, 1) if transposed else values, np.int8)

    def work() -> NDArray[Any]:
        left, right = twice(x.a, transposed=False), twice(x.b, transposed=True)
        scale_a, fraction_a = scale_planes(x.a, transposed=False)
        scale_b, fraction_b = scale_planes(x.b, transposed=True)
        size = shape(x)
        start = np.zeros(size) if x.c is None else as_float64(x.c)
        values = np.empty(size)
        over_items(
            lambda i, lo, hi: scaled_fp4.matmul(
                left[i], item(right, i), *(p[i] for p in scale_a),
                *(item(p, i) for p in scale_b), fraction_a + fraction_b, start[i], values[i],
                lo, hi, x.rule.align_bits,
            ),
            size[0], size[1],
        )  # fmt: skip
        return store(values, x.out, x.rule)

    return Work("scalar", work)


SCALED_FP4: Ways = (_vectors, _fp4)
