"""Which cases the vector kernels cover: for each, a condition and a call.

Every path gives the bits of the generic kernel. What a condition needs to know of a tensor is
looked at once and kept with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode
from numsim.dispatch import float_codes
from numsim.formats import Format
from numsim.kernels import (
    gemm_align,
    gemm_codes,
    gemm_fma,
    gemm_hopper,
    gemm_int,
    gemm_mac,
    gemm_saturate,
    gemm_two_chains,
    gemm_values,
    simd,
    simd_int,
)
from numsim.kernels import simd_align as kinds
from numsim.kernels.exact import extent
from numsim.kernels.fused import Block
from numsim.kernels.mac import Arithmetic
from numsim.kernels.simd_mac import Flavour
from numsim.quant import QTensor
from numsim.quant.types import decoded
from numsim.targets.types import Exact, Fused, IntSum, Mac

Planes = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def kept(q: QTensor, key: str, make: Callable[[], Any]) -> Any:
    """Return ``q.packed[key]``, made once."""
    if key not in q.packed:
        q.packed[key] = make()
    return q.packed[key]


def batched(array: NDArray[Any]) -> NDArray[Any]:
    """[..., M, K] -> [batch, M, K]."""
    return array.reshape(math.prod(array.shape[:-2]), *array.shape[-2:])


def as_float64(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return values as float64, signalling NaN without a warning."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


_MARKED_BITS = 20  # floats of at most so many are surveyed by the codes that occur


class Survey(NamedTuple):
    """What conditions ask of a tensor's values."""

    finite: bool
    low: int  # least and largest exponent of the nonzero ones, subnormals at the format's least
    high: int
    extent: tuple[bool, int, int]  # `kernels.exact.extent`; of float32 values only


def surveyed(f: Format) -> bool:
    """Whether a format's codes are few: of 8 or 16 bits, or bit patterns of a little more."""
    return f.code_dtype.itemsize <= 2 or (f.kind == "float" and f.bits <= _MARKED_BITS)


def survey(q: QTensor) -> Survey:
    """Look at the values that occur in a tensor of few bits, once."""

    def look() -> Survey:
        unsigned = q.codes.view(np.dtype(f"u{q.codes.dtype.itemsize}"))
        met = np.zeros(1 << min(8 * unsigned.dtype.itemsize, _MARKED_BITS), np.bool_)
        gemm_codes.mark(np.ravel(unsigned, order="K"), met)
        codes = np.flatnonzero(met).astype(unsigned.dtype).view(q.codes.dtype)
        values = as_float64(decode(codes, q.fmt))
        finite = bool(np.isfinite(values).all())
        nonzero = values[np.isfinite(values) & (values != 0)]
        exponents = np.maximum(np.frexp(nonzero)[1] - 1, q.fmt.emin)
        if not exponents.size:
            exponents = np.zeros(1, exponents.dtype)
        low, high = int(exponents.min()), int(exponents.max())
        return Survey(finite, low, high, extent(values.astype(np.float32).view(np.uint32)))

    found: Survey = kept(q, "survey", look)
    return found


def coded(q: QTensor, bits: int = _MARKED_BITS) -> bool:
    """Whether the vector kernels read the codes of q: a float of few bits, without block scales."""
    f = q.fmt
    return f.kind == "float" and f.zero and f.bits <= bits and not q.block_shape


@cache
def fields(f: Format, *, whole: bool = True) -> gemm_codes.Fields:
    """Return the parts of a format's codes as kernels take them."""
    return gemm_codes.fields(f.bits, f.precision, f.bias, f.signed, whole=whole)


@cache
def _byte_table(f: Format, wide: bool) -> gemm_values.Decode | None:
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


def codes_of(b: QTensor) -> gemm_values.Decode | None:
    """Return how the kernels of multiply-adds read the codes of b; None: they read values."""
    f = b.fmt
    how = _byte_table(f, simd.enabled()) if f.code_dtype.itemsize == 1 else None
    if simd.path() == "avx2" and short_codes(f) and b.codes.size and survey(b).finite:
        how = fields(f)
    if how is None:
        how = float_codes(f)
    if how is None and f.kind == "integer" and f.bits <= 16 and f.value_dtype == np.float32:
        how = gemm_values.integer_codes(f.code_dtype.itemsize, f.signed, 2.0**-f.bias)
    return how


def fma(a: NDArray[Any], b: QTensor, c: NDArray[Any] | None = None) -> NDArray[Any]:
    """Chains of fused multiply-adds in the type of a [batch, M, K], float32 or float64."""
    how = codes_of(b)
    if how is not None:
        codes = kept(b, f"codes {a.dtype}", lambda: gemm_values.pack_b(batched(b.codes), a.dtype))
        return gemm_values.gemm_values(a, codes, how, c=c)
    values = kept(
        b,
        f"values {a.dtype}",
        lambda: gemm_fma.pack_b(batched(decode(b.codes, b.fmt)).astype(a.dtype)),
    )
    return gemm_fma.gemm_fma(a, values, c=c)


def fp8_applies(a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: Fused) -> bool:
    """Whether the 13-bit FP8 kernel covers the case: finite operands, moderate C."""
    if (
        rule != Fused(rule.group, 13, 13)
        or rule.group > gemm_hopper.WIDEST
        or out.name != "float32"
    ):
        return False
    if a.fmt.precision > 4 or b.fmt.precision > 4 or not (coded(a, 8) and coded(b, 8)):
        return False
    if not (a.codes.size and b.codes.size):
        return False
    low, high = min(a.fmt.emin, b.fmt.emin), max(a.fmt.emax, b.fmt.emax)
    if low < gemm_hopper.LEAST or high > gemm_hopper.MOST:
        return False
    if not (survey(a).finite and survey(b).finite):
        return False
    if c is None:
        return True
    size = np.abs(c)
    return bool(((size == 0) | ((size >= gemm_hopper.LOW) & (size <= gemm_hopper.HIGH))).all())


def fp8(a: QTensor, b: QTensor, c: NDArray[Any] | None, rule: Fused) -> NDArray[np.float32]:
    """Ada and Hopper FP8: 13 fraction bits in the alignment and in the result."""
    left, right = batched(a.codes), batched(b.codes)
    key = f"fp8 {rule.group} {simd.path()}"
    packed = kept(b, key, lambda: gemm_hopper.pack_b(right, rule.group))

    def item(i: int) -> NDArray[np.float32]:
        at = min(i, len(right) - 1)
        one = packed._replace(panels=packed.panels[at : at + 1])
        rows = gemm_hopper.pack_a(left[i], fields(a.fmt), rule.group)
        start = None if c is None else c[i]
        sums: NDArray[np.float32] = gemm_hopper.gemm_hopper_fp8(rows, one, fields(b.fmt), c=start)
        return sums

    if len(left) == 1:
        return item(0)[None]
    out = np.empty((len(left), left.shape[1], right.shape[-1]), np.float32)
    for i in range(len(left)):
        out[i] = item(i)
    return out


def _survey_planes(q: QTensor, planes: Planes) -> tuple[bool, int, int]:
    found: tuple[bool, int, int] = kept(
        q, "survey planes", lambda: gemm_align.survey(*(p.reshape(-1) for p in planes))
    )
    return found


def align(
    a: QTensor, b: QTensor, planes: Callable[[QTensor, bool], Planes], c: NDArray[Any] | None,
    block: Block,
) -> NDArray[np.float32] | None:  # fmt: skip
    """Fused and two-stage blocks of finite operands; NaN and results are values, as float32.

    None where the kernel does not cover the case: significands' products are exact in float32, cut
    products fit int32 and the sums float64; all operands are finite, and no product is one that
    CDNA3 calls infinite. ``planes(q, right)`` splits an operand.
    """
    if block.align_bits > 25 or block.group > 256 or a.fmt.precision + b.fmt.precision > 24:
        return None
    if block.kind == kinds.TWO_STAGE and not block.align_bits <= block.sum_bits <= 40:
        return None
    by_code = coded(b) and not block.zero_products
    finite_a, low_a, high_a = survey(a)[:3] if coded(a) else _survey_planes(a, planes(a, False))
    finite_b, low_b, high_b = survey(b)[:3] if by_code else _survey_planes(b, planes(b, True))
    reach = high_a + high_b + 1 < block.product_limit if block.product_limit else True
    if not (finite_a and finite_b and reach):
        return None
    rule = gemm_align.Rule(
        block.kind if block.kind < kinds.TWO_STAGE else block.kind + block.streams - 1,
        block.group, block.align_bits, block.min_exponent, block.emin, block.emax,
        block.precision - 1, block.mode == 2, block.sum_bits, block.out_precision == 11,
    )  # fmt: skip
    trailing = a.fmt.precision - 1, b.fmt.precision - 1
    # every value and product a normal float32, and every scale of a block's products too
    whole = (
        low_a - trailing[0] >= -126
        and low_b - trailing[1] >= -126
        and low_a + low_b >= -100
        and max(high_a, high_b, high_a + high_b) <= 120
        and abs(b.fmt.bias) < 128  # its codes are read by way of 2**-bias
    )
    zeros = block.zero_products
    left = planes(a, False)
    rows = gemm_align.pack(
        left[0], left[1], trailing[0], rule, whole=whole, zeros=zeros, right=False
    )
    if by_code:
        key = f"align {rule.kind} {rule.group}"
        codes = kept(b, key, lambda: gemm_align.pack_b(batched(b.codes), rule))
        how = fields(b.fmt, whole=whole)
        return gemm_align.gemm_align(rows, codes, rule, whole=whole, c=c, how=how)
    key = f"align {rule.kind} {rule.group} {whole} {zeros}"
    right = planes(b, True)
    packed = kept(b, key, lambda: gemm_align.pack(
        right[0], right[1], trailing[1], rule, whole=whole, zeros=zeros, right=True,
    ))  # fmt: skip
    return gemm_align.gemm_align(rows, packed, rule, whole=whole, c=c)


def mac_flavour(a: Format, b: Format, rule: Mac, p: Arithmetic, f: Arithmetic) -> Flavour | None:
    """Return the vector kernel for a rule: chains, or trees of 2 or 4 rounded products."""
    rounded = not rule.fused or rule.product_format is not None
    tree = rule.group if rule.order == "tree" and rounded else 1
    chain = rule.order in ("sequential", "odd_first")
    if rule.rounding != "rne" or not (chain or tree in (2, 4)):
        return None
    if not (ieee(f) and (ieee(p) or not rounded)):
        return None
    low, high = f.emin - f.precision + 1, f.emax + 1
    if rounded:
        low, high = min(low, p.emin - p.precision + 1), max(high, p.emax + 1)
    elif a.kind == b.kind == "float":
        low = min(low, a.emin - a.precision + b.emin - b.precision + 2)
        high = max(high, a.emax + b.emax + 2)
    else:
        high = low + 99
    keeps = rule.negative_zero or rule.order != "tree"
    return Flavour(tree or 1, rounded, exact=high + 1 - low <= 53, signed_zero=keeps)


def ieee(f: Arithmetic) -> bool:
    """Whether a format is IEEE-like: its last binade is full and infinities follow."""
    return f.beyond == 0 and f.minus_zero and f.top == (2 - 2.0 ** (1 - f.precision)) * 2.0**f.emax


def mac(
    a: QTensor, b: QTensor, c: NDArray[np.float64], rule: Mac, p: Arithmetic, f: Arithmetic,
    flavour: Flavour,
) -> NDArray[np.float64]:  # fmt: skip
    """Multiply-adds that round to nearest even, from c; values as float64."""
    odd_first = rule.order == "odd_first"

    def values(q: QTensor, axis: int) -> NDArray[np.float64]:
        x = as_float64(batched(decoded(q)))
        if odd_first:
            x = gemm_mac.padded(x, axis, 2)
            x = np.take(x, np.arange(x.shape[axis]) ^ 1, axis)
        return flushed(x, q.fmt.min_normal) if rule.flush else x

    key = f"mac {flavour.tree} {odd_first} {rule.flush}"
    packed = kept(b, key, lambda: gemm_mac.pack_b(values(b, 1), flavour.tree))
    begin = flushed(c, 2.0**f.emin) if f.flush else c
    return gemm_mac.gemm_mac(values(a, 2), packed, begin, p, f, flavour)


_NO_TINY = 2.0**-103  # numbers of 24 bits from here on are multiples of float32's least normal


def two_chains_apply(
    a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: Mac
) -> bool:  # fmt: skip
    """Whether two chains of float32 never meet a number below the normal ones, nor flush any.

    Sums are multiples of the least product's lowest bit, rounded or not.
    """
    group = rule.group or 0
    if rule.steps != Mac(order="two_chains", group=group, flush=True, tiny="unbounded"):
        return False
    if group < 2 or group % 2 or out.name != "float32" or not (coded(a, 16) and coded(b, 16)):
        return False
    if float_codes(b.fmt) is None or a.fmt.value_dtype != np.float32:
        return False
    finite_a, low_a, _ = survey(normal(a)).extent
    finite_b, low_b, _ = survey(normal(b)).extent
    if not (finite_a and finite_b and low_a + low_b >= -126):
        return False
    return c is None or bool(((c == 0) | (np.abs(c) >= _NO_TINY)).all())


def normal(q: QTensor) -> QTensor:
    """Return a float tensor with zeros for subnormal numbers, made once."""

    def make() -> QTensor:
        f = q.fmt
        field = ((1 << (f.bits - f.signed)) - 1) >> (f.precision - 1) << (f.precision - 1)
        return QTensor(np.where(q.codes & field, q.codes, q.codes.dtype.type(0)), f)

    found: QTensor = kept(q, "normal", make)
    return found


def two_chains(a: QTensor, b: QTensor, c: NDArray[Any] | None, rule: Mac) -> NDArray[np.float32]:
    """Even and odd k of a group in chains of their own."""
    assert rule.group is not None
    group, right, how = rule.group, normal(b), float_codes(b.fmt)
    assert how is not None
    packed = kept(
        right, f"two chains {group}", lambda: gemm_two_chains.pack_b(batched(right.codes), group)
    )
    rows = batched(decoded(normal(a)))
    return gemm_two_chains.gemm_two_chains(rows, packed, how, group, c=c)


def flushed(values: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Return values, those below `least` in magnitude as zeros of their sign."""
    return np.where(np.abs(values) < least, np.copysign(0.0, values), values)


def sum_bits(a: QTensor, b: QTensor) -> int:
    """Return bits in which every partial sum over K of products fits, 99 if not all are finite."""

    def look(q: QTensor) -> tuple[bool, int, int]:
        if surveyed(q.fmt):
            return survey(q).extent
        values = np.ascontiguousarray(decoded(q), np.float32).reshape(-1)
        found: tuple[bool, int, int] = kept(q, "extent", lambda: extent(values.view(np.uint32)))
        return found

    (finite_a, low_a, high_a), (finite_b, low_b, high_b) = (look(q) for q in (a, b))
    if not (finite_a and finite_b):
        return 99
    return int(high_a + high_b - low_a - low_b + a.shape[-1].bit_length())


def exact_sum(a: QTensor, b: QTensor, c: NDArray[Any] | None) -> NDArray[np.float64]:
    """Return exact sums that float64 holds; plus c, they are rounded to odd."""
    sums = fma(batched(decode(a.codes, a.fmt)).astype(np.float64), b) + 0.0
    if c is None:
        return sums
    with np.errstate(all="ignore"):
        start = c.astype(np.float64)
        total = sums + start
        back = total - sums
        error = (sums - (total - back)) + (start - back)
        lost = np.isfinite(total) & (error != 0)
        away = (np.signbit(error) != np.signbit(total)).astype(np.int64)
        odd = (total.view(np.int64) - away | 1).view(np.float64)
    return np.where(lost, odd, total)


def exact_groups_apply(rule: Exact, bits: int, out: Format) -> bool:
    """Whether sums of groups are exact in float64, and rounded to an IEEE format."""
    return rule.group in (1, 2, 4, 8) and bits <= 53 and out.inf == "ieee"


def exact_groups(
    a: QTensor, b: QTensor, c: NDArray[np.float64], rule: Exact, out: Format
) -> NDArray[np.float64]:
    """Exact sums of groups of products and the accumulator, rounded once a group."""
    assert rule.group is not None
    f = Arithmetic(out.precision, out.emin, out.emax, 0, False, True, out.max, out.max)
    flavour = Flavour(
        rule.group, rounded=False, exact=False, plain=True, signed_zero=rule.negative_zero
    )
    key = f"exact {rule.group}"
    packed = kept(
        b, key, lambda: gemm_mac.pack_b(batched(decoded(b)).astype(np.float64), flavour.tree)
    )
    rows = batched(decoded(a)).astype(np.float64)
    return gemm_mac.gemm_mac(rows, packed, c, f, f, flavour)


IntegerPlan = Literal["int8", "float64", "clamp", "full", "pairs"]


def integer_plan(
    a: QTensor, b: QTensor, c: NDArray[np.int64] | None, rule: IntSum
) -> IntegerPlan | None:
    """Return the kernel that gives an integer unit's sums, if only modulo 2**acc_bits.

    ``int8`` and ``float64``: no sum can leave the range, or leaving it is harmless. The others
    limit what they add at every step, in int32.
    """
    bound = _largest(a) * _largest(b)
    start = 0 if c is None or not c.size else max(int(c.max()), -int(c.min()))
    total, most = bound * a.shape[-1] + start, (1 << (rule.acc_bits - 1)) - 1
    free = rule.pair_bits is None or 2 * bound < 1 << (rule.pair_bits - 1)
    if free and (rule.overflow == "wrap" or total <= most):
        bytes_only = a.codes.dtype.itemsize == 1 and b.codes.dtype.itemsize == 1
        if bytes_only and (rule.acc_bits <= 32 or total < 1 << 31):
            return "int8"
        return "float64" if total < 1 << 53 else None
    if 2 * bound * rule.group >= 1 << 31 or rule.overflow == "raise":
        return None
    if rule.overflow == "wrap":
        narrow = rule.pair_bits is not None and rule.pair_bits <= 32 and rule.acc_bits <= 32
        return "pairs" if narrow and rule.group % 2 == 0 else None
    if not free or rule.acc_bits > 32:
        return None
    if rule.acc_bits == 32:
        return "full"
    return "clamp" if most + 1 + bound * rule.group < 1 << 31 else None


def integer(
    a: QTensor, b: QTensor, c: NDArray[np.int64] | None, rule: IntSum, plan: IntegerPlan
) -> NDArray[Any]:
    """Integer sums by a plan, right modulo 2**acc_bits."""
    left, right = batched(a.codes), batched(b.codes)
    if plan == "int8":
        bytes_b = kept(b, "int8", lambda: gemm_int.pack_b(right))
        small = gemm_int.gemm_int8(left, bytes_b)
        return small if c is None else small + c
    if plan == "float64":
        doubles = kept(b, "float64", lambda: gemm_fma.pack_b(right.astype(np.float64)))
        sums = gemm_fma.gemm_fma(left.astype(np.float64), doubles).astype(np.int64)
        return sums if c is None else sums + c
    kind = {"clamp": simd_int.CLAMP, "full": simd_int.FULL, "pairs": simd_int.PAIRS}[plan]
    bits = rule.pair_bits if plan == "pairs" else rule.acc_bits
    assert bits is not None
    high = (1 << (bits - 1)) - 1
    key = f"saturate {rule.group} {left.dtype}"
    words = kept(b, key, lambda: gemm_saturate.pack_b(right, rule.group, left.dtype))
    shape = (len(left), left.shape[1], right.shape[-1])
    begin = np.zeros(shape, np.int32) if c is None else c.astype(np.int32)
    return gemm_saturate.gemm_saturate(left, words, begin, kind, rule.group, -high - 1, high)


def _largest(q: QTensor) -> int:
    """Return the largest magnitude of an integer tensor's codes."""

    def look() -> int:
        return max(int(q.codes.max()), -int(q.codes.min())) if q.codes.size else 0

    return int(kept(q, "largest", look))
