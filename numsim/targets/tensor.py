"""A tensor as kernels read it: what is looked up or packed once is kept with it."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.convert import checked_codes, decode
from numsim.dispatch import float_codes
from numsim.formats import Format
from numsim.kernels.gemm import align as gemm_align
from numsim.kernels.gemm import codes as gemm_codes
from numsim.kernels.gemm import values as gemm_values
from numsim.kernels.gemm.scales import NONE, Scales, scales_of
from numsim.kernels.ir import simd
from numsim.kernels.rules import align as align_kernel
from numsim.quant import QTensor
from numsim.quant.kept import has, kept, known

Planes = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def batched(array: NDArray[Any]) -> NDArray[Any]:
    """[..., M, K] -> [batch, M, K]."""
    if array.ndim == 2:
        return array[None]
    return array.reshape(math.prod(array.shape[:-2]), *array.shape[-2:])


def as_float64(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return values as float64, signalling NaN without a warning."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


# Codes of a left operand that is kept packed, in up to twelve times the memory: it is often that of
# several products, and where they are small, packing is a good part of them.
_KEPT_ROWS = 1 << 18
_MARKED_BITS = 20  # floats of at most so many are surveyed by the codes that occur


def keeps_rows(q: QTensor) -> bool:
    """Whether q, as a left operand, is kept packed: a run of k where all of them are.

    >>> keeps_rows(QTensor.from_codes(np.zeros((512, 512), int), "int8"))
    True
    """
    size: int = known(q, "whole") or q.codes.size
    return size <= _KEPT_ROWS


class Survey(NamedTuple):
    """What conditions ask of a tensor's values."""

    finite: bool
    low: int  # least and largest exponent of the nonzero ones, subnormals at the format's least
    high: int
    extent: tuple[bool, int, int]  # `kernels.exact.extent`; of float32 values only


def surveyed(f: Format) -> bool:
    """Whether a format's codes are few: of 8 or 16 bits, or bit patterns of a little more."""
    return f.code_dtype.itemsize <= 2 or (f.kind == "float" and f.bits <= _MARKED_BITS)


_NOWHERE = 1 << 12  # beyond the exponents of all numbers
_INFINITE, _BEYOND, _STRANGE = 1, 2, 4  # no finite number; as float32; no code of the format


def _edges(values: NDArray[np.float64], emin: int) -> NDArray[np.int16]:
    """Return what `Survey` says of each number alone, [numbers, 5], for `gemm_codes.outermost`.

    Its exponent twice, low and high of its `extent`, and bits; zeros lie beyond all others.
    """
    with np.errstate(all="ignore"):
        single = values.astype(np.float32).astype(np.float64)
    known, held = np.isfinite(values), np.isfinite(single)
    exponent = np.maximum(np.frexp(np.where(known, values, 0.0))[1] - 1, emin)
    mantissa, high = np.frexp(np.where(held, single, 0.0))
    whole = (mantissa * 2.0**53).astype(np.int64)
    low = high - 54 + np.frexp((whole & -whole).astype(np.float64))[1]
    some, one = known & (values != 0), held & (single != 0)
    columns = (
        np.where(some, exponent, _NOWHERE), np.where(some, exponent, -_NOWHERE),
        np.where(one, low, _NOWHERE), np.where(one, high, -_NOWHERE),
        np.where(known, 0, _INFINITE) | np.where(held, 0, _BEYOND),
    )  # fmt: skip
    return np.stack(columns, -1).astype(np.int16)


@lru_cache(maxsize=32)
def edges(f: Format) -> NDArray[np.int16]:
    """Return `_edges` of all codes of 8 or 16 bits, as unsigned, of a format."""
    codes = np.arange(1 << 8 * f.code_dtype.itemsize).astype(f"u{f.code_dtype.itemsize}")
    numbers = codes.view(f.code_dtype).astype(np.int64)
    low = -1 << (f.bits - 1) if f.kind == "integer" and f.signed else 0
    strange = (numbers < low) | (numbers >= low + (1 << f.bits))
    found = _edges(as_float64(decode(np.where(strange, 0, numbers), f)), f.emin)
    found[strange, 4] = _STRANGE
    return found


def survey(q: QTensor) -> Survey:
    """Look at the values that occur in a tensor of few bits, once."""

    def look() -> Survey:
        unsigned = np.ravel(q.codes.view(np.dtype(f"u{q.codes.dtype.itemsize}")), order="K")
        if unsigned.itemsize <= 2:
            low, high, first, last, bits = gemm_codes.outermost(unsigned, edges(q.fmt))
        else:
            checked_codes(q.codes, q.fmt)  # others would count as those of their lowest bits
            met = np.zeros(1 << _MARKED_BITS, np.bool_)
            gemm_codes.mark(unsigned, met)
            codes = np.flatnonzero(met).astype(unsigned.dtype)
            found = _edges(as_float64(decode(codes.view(q.codes.dtype), q.fmt)), q.fmt.emin)
            low, first = found[:, :4:2].min(0, initial=_NOWHERE)
            high, last = found[:, 1:4:2].max(0, initial=-_NOWHERE)
            bits = np.bitwise_or.reduce(found[:, 4])
        if bits & _STRANGE:
            checked_codes(q.codes, q.fmt)  # says which
        low, high = (int(low), int(high)) if low <= high else (0, 0)
        first, last = (int(first), int(last)) if first <= last else (0, 0)
        return Survey(not bits & _INFINITE, low, high, (not bits & _BEYOND, first, last))

    found: Survey = kept(q, "survey", look)
    return found


def finite(q: QTensor) -> bool:
    """Return what `survey` says of it first, of codes of a byte sooner."""
    seen = known(q, "finite")
    if seen is not None:
        return bool(seen)
    if has(q, "survey") or q.codes.itemsize > 1:
        return survey(q).finite

    def look() -> bool:
        codes = np.ravel(q.codes.view(np.uint8), order="K")
        return not gemm_codes.among(codes, *_not_finite(q.fmt))

    found: bool = kept(q, "finite", look)
    return found


@cache
def _not_finite(f: Format) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return runs of codes of a byte that are infinite or NaN: the first of each, and how many."""
    special = np.flatnonzero(_classes(f))
    starts = special[np.diff(special, prepend=-2) != 1]
    ends = special[np.diff(special, append=-2) != 1]
    return starts.astype(np.uint8), (ends - starts + 1).astype(np.uint8)


def coded(q: QTensor, bits: int = _MARKED_BITS) -> bool:
    """Whether the vector kernels read the codes of q: a float of few bits, without block scales."""
    return small_floats(q.fmt, bits) and not q.block_shape


def small_floats(f: Format, bits: int) -> bool:
    """Whether a format's codes are floats of at most so many bits, with a zero."""
    return f.kind == "float" and f.zero and f.bits <= bits


@cache
def fields(f: Format, *, whole: bool = True) -> gemm_codes.Fields:
    """Return the parts of a format's codes as kernels take them."""
    return gemm_codes.fields(f.bits, f.precision, f.bias, f.signed, whole=whole)


@cache
def byte_table(f: Format, wide: bool) -> gemm_values.Decode | None:
    """Return a table of the values of a format's codes, where kernels read one."""
    if f.value_dtype != np.float32:
        return None
    patterns = np.arange(256) & ((1 << f.bits) - 1)  # signed integers' codes are sign-extended
    return gemm_values.byte_table(f.values()[patterns].astype(np.float32))


@cache
def short_codes(f: Format) -> bool:
    """Whether AVX2 reads a format's finite codes by 16-bit lanes."""
    small = f.kind == "float" and f.zero and f.bits <= 8 and f.precision <= 4
    return small and f.emin - f.precision + 1 >= -126 and f.emax <= 127 and abs(f.bias) < 127


def in_halves(f: Format) -> bool:
    """Whether float16 holds the exponents of a format's finite codes, but for its bias."""
    return f.emax + f.bias <= 30


def codes_of(b: QTensor) -> gemm_values.Decode | None:
    """Return how the kernels of multiply-adds read the codes of b; None: they read values."""
    f = b.fmt
    how = byte_table(f, simd.enabled()) if f.code_dtype.itemsize == 1 else None
    if simd.path() == "avx2" and short_codes(f) and b.codes.size and finite(b):
        how = fields(f)
    if how is None:
        how = float_codes(f)
    if how is None and f.kind == "integer" and f.bits <= 16 and f.value_dtype == np.float32:
        how = gemm_values.integer_codes(f.code_dtype.itemsize, f.signed, 2.0**-f.bias)
    return how


@cache
def _classes(fmt: Format) -> NDArray[np.uint8]:
    """Return 0 finite, 1 infinite, 2 NaN for every code of a format."""
    every = fmt.decode_bits(np.arange(1 << fmt.bits, dtype=np.int64))
    return np.where(np.isnan(every), 2, np.where(np.isinf(every), 1, 0)).astype(np.uint8)


NAN_POWER = 128  # stands for the exponent of an E8M0 scale that is NaN


def scale_powers(q: QTensor, transposed: bool) -> NDArray[np.int32] | None:
    """Return exponents of E8M0 scales, [batch, M, K] (b: [batch, N, K]); None without blocks."""
    if q.block_shape is None or q.scale_codes is None:
        return None
    scale = batched(q.scale_codes.astype(np.int32))
    scale = scale.transpose(0, 2, 1) if transposed else scale
    depth = q.shape[-2 if transposed else -1]
    return np.repeat(scale, max(q.block_shape), axis=-1)[..., :depth] - np.int32(127)


def planes(q: QTensor, transposed: bool) -> Planes:
    """Signed significands, exponents and classes, [batch, M, K] (b: [batch, N, K]).

    Power-of-two block scales are added to the exponents; a NaN scale makes its block NaN.
    """

    def make() -> Planes:
        f = q.fmt
        codes = batched(checked_codes(q.codes, f))  # their classes are looked up
        codes = np.ascontiguousarray(codes.transpose(0, 2, 1) if transposed else codes)
        sig, exp = np.empty(codes.shape, np.int32), np.empty(codes.shape, np.int32)
        cls = np.empty(codes.shape, np.uint8)
        trailing = f.precision - 1
        align_kernel.split(
            codes.reshape(-1), trailing, f.bits - 1 - trailing, f.bias, _classes(f),
            sig.reshape(-1), exp.reshape(-1), cls.reshape(-1),
        )  # fmt: skip
        powers = scale_powers(q, transposed)
        if powers is not None:
            exp += powers
            cls[powers == NAN_POWER] = 2
        return sig, exp, cls

    made: Planes = kept(q, "planes", make, transposed)
    return made


def survey_planes(q: QTensor, planes: Planes) -> tuple[bool, int, int]:
    """Return what `survey` says first, of a tensor of many codes by its planes."""
    found: tuple[bool, int, int] = kept(
        q, "survey of planes", lambda: gemm_align.survey(*(p.reshape(-1) for p in planes))
    )
    return found


def quantum(fmt: Format) -> Fraction:
    """Return the largest power of two that every finite value of a format is a multiple of.

    Examples
    --------
    >>> from numsim.formats import get_format
    >>> quantum(get_format("float8_e4m3fn")), quantum(get_format("q3.4"))
    (Fraction(1, 512), Fraction(1, 16))
    """
    if fmt.kind != "table":
        return Fraction(fmt.min_subnormal)
    values = [Fraction(v) for v in fmt.table if np.isfinite(v) and v]
    return Fraction(1, max(v.denominator for v in values))


def signed_bits(low: Fraction | int, high: Fraction | int) -> int:
    """Return the bits of the narrowest two's-complement register for all of [low, high].

    Examples
    --------
    >>> signed_bits(-128, 127), signed_bits(0, 128), signed_bits(0, 0)
    (8, 9, 1)
    """
    return max((n if n >= 0 else ~n).bit_length() + 1 for n in (low.__floor__(), high.__floor__()))


def block_scales(q: QTensor, group: int, *, transposed: bool, magnitude: int = 255) -> Scales:
    """Return the scales of an operand for groups of so many k; `magnitude` as in `Scales`."""
    if q.scale_codes is None or q.block_shape is None:
        return NONE
    codes = batched(q.scale_codes.astype(np.uint8, copy=False))
    codes = codes.swapaxes(1, 2) if transposed else codes
    return scales_of(codes, max(q.block_shape) // group, magnitude)


def nan_lines(sums: NDArray[Any], rows: Scales, columns: Scales) -> NDArray[Any]:
    """Make the lines of sums [batch, M, N] NaN, in place, that have a scale that is."""
    if rows.nan or columns.nan:
        marked = rows.nan_lines()[:, :, None] | columns.nan_lines()[:, None, :]
        np.copyto(sums, np.nan, where=marked)  # one line stands for all where codes are bare
    return sums
