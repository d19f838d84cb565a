"""Aligned and truncated blocks of products: the kernels, and which chains each covers."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format
from numsim.kernels.convert.round import RNE, RTZ
from numsim.kernels.gemm import align as gemm_align
from numsim.kernels.gemm import codes as gemm_codes
from numsim.kernels.gemm import double as gemm_double
from numsim.kernels.gemm import hopper as gemm_hopper
from numsim.kernels.gemm import two_streams as gemm_two_streams
from numsim.kernels.gemm.codes import Fields
from numsim.kernels.gemm.scales import ONE, Scales
from numsim.kernels.ir import align as kinds
from numsim.kernels.ir import simd
from numsim.kernels.ir.double import ANY
from numsim.kernels.rules.align import Block
from numsim.quant import QTensor
from numsim.quant.kept import kept
from numsim.targets.chain import (
    Chain,
    Ways,
    Work,
    one_nan,
    store,
)
from numsim.targets.rules import Fused, bulk_norm, fused, mme, two_stage
from numsim.targets.tensor import (
    Planes,
    batched,
    block_scales,
    coded,
    fields,
    finite,
    keeps_rows,
    nan_lines,
    planes,
    short_codes,
    small_floats,
    survey,
    survey_planes,
    surveyed,
)

FP8 = "FP8 with 13 fraction bits"


def fp8_applies(a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: Fused) -> bool:
    """Whether the 13-bit FP8 kernel covers the case: finite operands, moderate C."""
    if not _fp8_covers(rule, a.fmt, b.fmt, out) or a.block_shape or b.block_shape:
        return False
    if not (a.codes.size and b.codes.size and finite(a) and finite(b)):
        return False
    if c is None:
        return True
    size = np.abs(c)
    return bool(((size == 0) | ((size >= gemm_hopper.LOW) & (size <= gemm_hopper.HIGH))).all())


@lru_cache(maxsize=256)
def _fp8_covers(rule: Fused, a: Format, b: Format, out: Format) -> bool:
    plain = Fused(rule.group, 13, 13, min_exponent=rule.min_exponent)
    if rule.steps != plain or rule.group > gemm_hopper.WIDEST or out.name != "float32":
        return False
    # neither a product nor an accumulator that products left lies below
    if rule.min_exponent is not None and rule.min_exponent > 2 * gemm_hopper.LEAST - 13:
        return False
    if not all(small_floats(f, 8) and f.precision <= 4 for f in (a, b)):
        return False
    return min(a.emin, b.emin) >= gemm_hopper.LEAST and max(a.emax, b.emax) <= gemm_hopper.MOST


def fp8(a: QTensor, b: QTensor, c: NDArray[Any] | None, rule: Fused) -> NDArray[np.float32]:
    """Ada and Hopper FP8: 13 fraction bits in the alignment and in the result."""
    left, right, how = batched(a.codes), batched(b.codes), fields(b.fmt)
    by = rule.group, simd.path()
    packed = kept(b, "fp8", lambda: gemm_hopper.pack_b(right, rule.group), *by)

    if not len(left) == len(right) == 1:
        return gemm_hopper.gemm_items(left, fields(a.fmt), packed, how, rule.group, c)

    def rows() -> gemm_hopper.PackedFp8:
        return gemm_hopper.pack_a(left[0], fields(a.fmt), rule.group)

    one = kept(a, "fp8 rows", rows, *by) if keeps_rows(a) else rows()
    start = None if c is None else c[0]
    return gemm_hopper.gemm_hopper_fp8(one, packed, how, c=start)[None]


def _fp8(x: Chain) -> Work | None:
    if not fp8_applies(x.a, x.b, x.c, x.out, x.rule):
        return None
    return Work(FP8, lambda: fp8(x.a, x.b, x.c, x.rule))


def double_applies(a: QTensor, b: QTensor, out: Format, rule: Fused) -> bool:
    """Whether the float64 kernel of small formats does it: finite codes, scales by group."""
    if simd.path() == "plain" or not _double_covers(rule, a.fmt, b.fmt, out):
        return False
    few = a.scale_codes is None and math.prod(a.shape[:-1]) <= gemm_double.FEW[simd.path()]
    if few and not gemm_double.reads_codes(fields(b.fmt)):
        return False
    if not (a.codes.size and b.codes.size):
        return False
    return _whole(a, -1, rule.group) and _whole(b, -2, rule.group) and finite(a) and finite(b)


@lru_cache(maxsize=256)
def _double_covers(rule: Fused, a: Format, b: Format, out: Format) -> bool:
    """Whether a path with vectors does such a case: what is kept must hold on each of them."""
    plain = Fused(rule.group, rule.align_bits, min_exponent=rule.min_exponent, nan=rule.nan)
    if rule.steps != plain or out.name != "float32" or not (short_codes(a) and short_codes(b)):
        return False
    low, high, precision = min(a.emin, b.emin), max(a.emax, b.emax), max(a.precision, b.precision)
    return gemm_double.covers(rule.group, rule.align_bits, rule.min_exponent, low, high, precision)


def _whole(q: QTensor, axis: int, group: int) -> bool:
    """Whether q has scales, if any, for multiples of a group of k."""
    if q.block_shape is None or q.scale_codes is None:
        return q.block_shape is None
    return q.block_shape[axis] % group == 0


def double(
    a: QTensor, b: QTensor, c: NDArray[np.float32] | None, rule: Fused
) -> NDArray[np.float32]:
    """Small formats on units that keep many fraction bits; a NaN scale makes its line NaN."""

    def pack() -> tuple[gemm_double.PackedDouble, Scales]:
        scales = block_scales(b, rule.group, transposed=True)
        return gemm_double.pack_b(batched(b.codes), scales, rule.group), scales

    packed, columns = kept(b, "double", pack, rule.group, simd.path())
    rows = block_scales(a, rule.group, transposed=False)
    low = a.fmt.emin + b.fmt.emin + rows.least + columns.least - 2 * ONE
    high = a.fmt.emax + b.fmt.emax + 2 + rows.greatest + columns.greatest - 2 * ONE
    kind = gemm_double.kind_of(
        low, high + a.shape[-1].bit_length(), rule.min_exponent, c,
        scaled=a.scale_codes is not None or b.scale_codes is not None,
    )  # fmt: skip
    sums = gemm_double.gemm_double(
        batched(a.codes), rows, fields(a.fmt), packed, fields(b.fmt),
        rule.group, rule.align_bits, rule.min_exponent, kind, c,
    )  # fmt: skip
    if (c is None or kind != ANY) and not (rows.nan or columns.nan):
        return sums  # without NaN
    return one_nan(nan_lines(sums, rows, columns), rule)


def _double(x: Chain) -> Work | None:
    if not double_applies(x.a, x.b, x.out, x.rule):
        return None
    return Work("aligned sums in float64", lambda: double(x.a, x.b, x.c, x.rule))


def _aligned(x: Chain, block: Block, own: Own | None = None) -> Work | None:
    """Blocks of finite operands; NaN and results are values, as float32.

    Covered: significands' products are exact in float32, cut products fit int32 and the sums
    float64; all operands are finite, and no product is one that CDNA3 calls infinite. `own`: how
    the unit reads the operands, where that is not what their formats say.
    """
    a, b = x.a, x.b
    single = block.kind != kinds.TWO_STAGE and x.out.name == "float32"
    if block.floor or block.mode != (RTZ if single else RNE):
        return None
    if block.align_bits > 25 or block.group > 256 or a.fmt.precision + b.fmt.precision > 24:
        return None
    if block.kind == kinds.TWO_STAGE and not block.align_bits <= block.sum_bits <= 40:
        return None
    by_code = coded(b) and not block.zero_products
    if own is not None:
        (low_a, high_a), (low_b, high_b) = own.exponents
        finite_a, finite_b = survey(a).finite, survey(b).finite
    else:
        finite_a, low_a, high_a = survey(a)[:3] if coded(a) else survey_planes(a, planes(a, False))
        finite_b, low_b, high_b = survey(b)[:3] if by_code else survey_planes(b, planes(b, True))
    reach = high_a + high_b + 1 < block.product_limit if block.product_limit else True
    if not (finite_a and finite_b and reach):
        return None
    trailing = a.fmt.precision - 1, b.fmt.precision - 1
    # every value and product a normal float32, and every scale of a block's products too
    whole = (
        low_a - trailing[0] >= -126
        and low_b - trailing[1] >= -126
        and low_a + low_b >= -100
        and max(high_a, high_b, high_a + high_b) <= 120
        and abs(b.fmt.bias) < 128  # its codes are read by way of 2**-bias
    )
    if own is not None:
        by_code = by_code and whole and own.how is not None
    return Work(
        "aligned terms", lambda: store(_align(x, block, by_code, whole, own), x.out, x.rule)
    )


def _align(
    x: Chain, block: Block, by_code: bool, whole: bool, own: Own | None = None
) -> NDArray[np.float32]:
    a, b = x.a, x.b
    rule = gemm_align.Rule(
        block.kind if block.kind < kinds.TWO_STAGE else block.kind + block.streams - 1,
        block.group, block.align_bits, block.min_exponent, block.emin, block.emax,
        block.precision - 1, block.mode == 2, block.sum_bits, block.out_precision == 11,
        block.fraction,
    )  # fmt: skip
    zeros = block.zero_products
    left = planes(a, False) if own is None else own.left(a)
    rows = gemm_align.pack(
        left[0], left[1], a.fmt.precision - 1, rule, whole=whole, zeros=zeros, right=False
    )
    if by_code:
        codes = kept(
            b, "align codes", lambda: gemm_align.pack_b(batched(b.codes), rule), rule.kind,
            rule.group,
        )  # fmt: skip
        how = own.how if own is not None else fields(b.fmt, whole=whole)
        return gemm_align.gemm_align(rows, codes, rule, whole=whole, c=x.c, how=how)
    read = () if own is None else (own.rule.bias_b, own.rule.subnormals)
    right = planes(b, True) if own is None else own.right(b)
    packed = kept(b, "align", lambda: gemm_align.pack(
        right[0], right[1], b.fmt.precision - 1, rule, whole=whole, zeros=zeros, right=True,
    ), rule.kind, rule.group, whole, zeros, read)  # fmt: skip
    return gemm_align.gemm_align(rows, packed, rule, whole=whole, c=x.c)


class Own(NamedTuple):
    """Operands as a unit reads them: `how` codes of b are read, None: by its planes.

    `exponents`: least and largest one of the formats of a and b.
    """

    rule: mme.Mme
    exponents: tuple[tuple[int, int], tuple[int, int]]
    how: Fields | None

    def left(self, q: QTensor) -> Planes:
        """Return the planes of a."""
        return mme.operand(q, self.rule, transposed=False)[:3]

    def right(self, q: QTensor) -> Planes:
        """Return the planes of b."""
        return mme.operand(q, self.rule, transposed=True)[:3]


def _mme(x: Chain) -> Work | None:
    rule, a, b = x.rule, x.a.fmt, x.b.fmt
    if rule.accumulator != "joins" or not (surveyed(a) and surveyed(b)):
        return None
    ranges = tuple(
        mme.exponents(f, bias, rule.subnormals) for f, bias in ((a, rule.bias_a), (b, rule.bias_b))
    )
    bias = b.bias if rule.bias_b is None else rule.bias_b
    how = None
    if rule.subnormals in ("normalised", "kept"):
        leading = rule.subnormals == "normalised"
        how = gemm_codes.fields(b.bits, b.precision, bias, b.signed, leading=leading)
    own = Own(rule, (ranges[0], ranges[1]), how)
    return _aligned(x, mme.block_of(rule, a, b), own)


def _bulk_norm(x: Chain) -> Work | None:
    """Cover sets of finite codes of a byte: no product leaves float32, scaled to be cut."""
    a, b = x.a, x.b
    block = bulk_norm.block_of(x.rule, a.fmt, b.fmt)
    if block.align_bits > gemm_align.MOST_JAMMED or not (coded(a, 8) and coded(b, 8)):
        return None
    (finite_a, low_a, high_a), (finite_b, low_b, high_b) = (survey(q)[:3] for q in (a, b))
    low, high = low_a + low_b - block.fraction, high_a + high_b + 2
    normal = low >= -100 and high <= 100 and low - high >= -100 and abs(b.fmt.bias) < 128
    if not (finite_a and finite_b and normal):
        return None
    return Work("aligned terms", lambda: store(_align(x, block, True, True), x.out, x.rule))


def _fused(x: Chain) -> Work | None:
    return _aligned(x, fused.block_of(x.rule, x.a.fmt, x.b.fmt, x.out))


def _two_stage(x: Chain) -> Work | None:
    return _aligned(x, two_stage.block_of(x.rule, x.a.fmt, x.b.fmt))


def two_streams_apply(x: Chain) -> bool:
    """Whether the kernel of CDNA3's FP8 rule does it: finite codes of a byte, moderate C."""
    a, b, rule = x.a, x.b, x.rule
    few = math.prod(a.shape[:-1]) <= gemm_two_streams.FEW[simd.path()]
    if few and not gemm_double.reads_codes(fields(b.fmt)):
        return False
    if rule.streams != 2 or rule.zero_products or not (a.codes.size and b.codes.size):
        return False
    if not (short_codes(a.fmt) and short_codes(b.fmt)):
        return False
    low, high = min(a.fmt.emin, b.fmt.emin), max(a.fmt.emax, b.fmt.emax)
    precision = max(a.fmt.precision, b.fmt.precision)
    covered = gemm_two_streams.covers(
        rule.group, rule.align_bits, rule.sum_bits, low, high, precision, x.c
    )
    return covered and finite(a) and finite(b)


def _two_streams(x: Chain) -> Work | None:
    if not two_streams_apply(x):
        return None

    def work() -> NDArray[Any]:
        a, b, group = x.a, x.b, x.rule.group
        packed = kept(
            b, "two streams", lambda: gemm_two_streams.pack_b(batched(b.codes), group), group,
            simd.path(),
        )  # fmt: skip
        sums: NDArray[np.float32] = gemm_two_streams.gemm_two_streams(
            batched(a.codes), fields(a.fmt), packed, fields(b.fmt), group, x.c
        )
        return sums

    return Work("two streams in float64", work)


def uncounted(x: Chain) -> NDArray[Any]:
    """Run a chain of `Fused` without counts."""
    plain = x._replace(tally=None)
    works = (way(plain) for way in FUSED)
    work = next((found for found in works if found is not None), None)
    return (work or fused.FUSED.definition(plain)).run()


FUSED: Ways = (_fp8, _double, _fused)
TWO_STAGE: Ways = (_two_streams, _two_stage)
BULK_NORM: Ways = (_bulk_norm,)
MME: Ways = (_mme,)
