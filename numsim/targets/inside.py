"""Small formats with block scales inside the unit, by vector kernels where they cover the case.

Every path gives the bits of the scalar kernel (`kernels.fused`, `kernels.scaled_fp4`).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format
from numsim.kernels import gemm_double, gemm_fp4, scaled_fp4, simd
from numsim.quant import QTensor
from numsim.targets.fast import batched, fields, kept, short_codes, survey
from numsim.targets.types import Fused, ScaledFp4


def double_applies(a: QTensor, b: QTensor, out: Format, rule: Fused) -> bool:
    """Whether the float64 kernel of small formats does it: finite codes, scales by group."""
    plain = Fused(
        rule.group, rule.align_bits, min_exponent=rule.min_exponent, nan=rule.nan
    )  # fmt: skip
    few = a.scale_codes is None and math.prod(a.shape[:-1]) <= gemm_double.FEW
    if few or rule != plain or out.name != "float32" or not (a.codes.size and b.codes.size):
        return False
    if not (_few_bits(a, -1, rule.group) and _few_bits(b, -2, rule.group)):
        return False
    low, high = min(a.fmt.emin, b.fmt.emin), max(a.fmt.emax, b.fmt.emax)
    precision = max(a.fmt.precision, b.fmt.precision)
    covered = gemm_double.covers(
        rule.group, rule.align_bits, rule.min_exponent, low, high, precision
    )
    return covered and survey(a).finite and survey(b).finite


def _few_bits(q: QTensor, axis: int, group: int) -> bool:
    """Whether q has a byte a code and scales, if any, for multiples of a group of k."""
    small = short_codes(q.fmt)
    if q.block_shape is None or q.scale_codes is None:
        return small and q.block_shape is None
    return small and q.block_shape[axis] % group == 0


def _powers(q: QTensor, group: int, *, transposed: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return exponents of E8M0 scales of groups [batch, lines, groups], and which lines are NaN."""
    depth = q.shape[-2 if transposed else -1]
    groups = -(-depth // group)
    if q.scale_codes is None or q.block_shape is None:
        lines = q.shape[-1 if transposed else -2]
        shape = (math.prod(q.shape[:-2]), lines)
        return np.zeros((*shape, groups), np.int32), np.zeros(shape, np.bool_)
    codes = batched(q.scale_codes.astype(np.int32))
    codes = codes.transpose(0, 2, 1) if transposed else codes
    wide = np.repeat(codes, max(q.block_shape) // group, axis=-1)[..., :groups]
    return wide - 127, _any(wide == 255)


def double(
    a: QTensor, b: QTensor, c: NDArray[np.float32] | None, rule: Fused
) -> NDArray[np.float32]:
    """Small formats on units that keep many fraction bits; a NaN scale makes its line NaN."""

    def pack() -> tuple[gemm_double.PackedDouble, NDArray[np.bool_], int]:
        powers, nan = _powers(b, rule.group, transposed=True)
        most = int(powers.max())
        return gemm_double.pack_b(batched(b.codes), powers, rule.group), nan, most

    packed, nan_columns, most = kept(b, f"double {rule.group}", pack)
    powers, nan_rows = _powers(a, rule.group, transposed=False)
    high = a.fmt.emax + b.fmt.emax + 2 + int(powers.max()) + most + a.shape[-1].bit_length()
    bounded = high < 126 and (c is None or (np.abs(c) < 2.0**126).all())
    sums = gemm_double.gemm_double(
        batched(a.codes), powers, fields(a.fmt), packed, fields(b.fmt),
        rule.group, rule.align_bits, rule.min_exponent, bounded=bool(bounded), c=c,
    )  # fmt: skip
    if nan_rows.any() or nan_columns.any():
        sums[nan_rows[:, :, None] | nan_columns[:, None, :]] = np.nan
    return sums


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
        return gemm_fp4.pack_b(batched(b.codes), scales), _any(means_b.nan[codes])

    packed, nan_columns = kept(b, "fp4", pack)
    fraction = means_a.fraction + means_b.fraction
    sums = gemm_fp4.gemm_fp4(
        batched(a.codes), own, packed, twice, fraction, rule.align_bits, c=c
    )  # fmt: skip
    nan_rows = _any(means_a.nan[scales_a])
    if nan_rows.any() or nan_columns.any():
        sums[nan_rows[:, :, None] | nan_columns[:, None, :]] = np.nan
    return sums


def _any(met: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which lines have one."""
    lines: NDArray[np.bool_] = np.any(met, axis=-1)
    return lines
