"""One function a kind of unit: operands as kernels want them, packed once per tensor."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.convert import encode
from numsim.formats import Format, get_format
from numsim.kernels import exact as exact_kernel
from numsim.kernels import fused as fused_kernel
from numsim.kernels import mac as mac_kernel
from numsim.kernels import scaled_fp4
from numsim.kernels.jit import over_items
from numsim.quant import QTensor
from numsim.quant.types import decoded
from numsim.targets import fast, inside
from numsim.targets.fast import as_float64
from numsim.targets.fast import batched as _batched
from numsim.targets.fast import kept as _kept
from numsim.targets.integers import add_integer_parts, integer
from numsim.targets.types import Exact, Fused, IntSum, Mac, Rule, ScaledFp4, TwoStage

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
_ORDER = {"sequential": 0, "tree": 1, "odd_first": 2, "two_chains": 3}
_MODE = {"rne": 0, "rna": 1, "rtz": 2, "rup": 3, "rdn": 4, "rto": 5}
_ACCUMULATOR = {"joins": 0, "late": 1, "halves": 2}
_NO_LIMIT = -(1 << 29)


def run(
    rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, name: str
) -> NDArray[Any]:
    """Run one chain of a unit: a [..., M, K] by b [..., K, N] from c, result [count, M, N]."""
    if isinstance(rule, IntSum):
        return integer(a, b, c, rule, name)
    if isinstance(rule, Exact):
        return exact(a, b, c, out, rule)
    if isinstance(rule, Mac):
        return mac(a, b, c, out, rule)
    if isinstance(rule, ScaledFp4):
        return fp4(a, b, c, out, rule)
    return fused(a, b, c, out, rule)


def add_parts(parts: list[NDArray[Any]], rule: Rule) -> NDArray[Any]:
    """Add chunk or split results in order: float32 nearest even, or in `outer_bits`."""
    if isinstance(rule, IntSum):
        return add_integer_parts(parts, rule)
    with np.errstate(all="ignore"):
        total = parts[0].astype(np.float32) + np.float32(0.0)
        for part in parts[1:]:
            total = total + part.astype(np.float32)
    return one_nan(total, rule)


def one_nan(sums: NDArray[Any], rule: Rule) -> NDArray[Any]:
    """Give NaN among float32 sums made here the bits of the unit's, in place: not the host's."""
    with np.errstate(over="ignore", invalid="ignore"):
        some = np.isnan(sums.sum())  # no large temporary where there is none
    if some:
        ones = isinstance(rule, ScaledFp4) or (isinstance(rule, Fused) and rule.nan == "ones")
        sums.view(np.uint32)[np.isnan(sums)] = 0x7FFFFFFF if ones else 0x7FC00000
    return sums


def round_to(values: NDArray[Any], out: Format, rule: Rule | None = None) -> NDArray[Any]:
    """Round numbers to the output format (nearest even) in its NumPy type; NaN as the unit's."""
    dtype = DTYPES[out.name]
    codes: NDArray[Any] = encode(values, out, overflow="special")
    ones = isinstance(rule, Fused) and rule.nan == "ones"  # its narrow results are float16
    codes[np.isnan(values)] = 0x7FFF if ones else out.nan_code  # the sign of NaN is the host's
    typed: NDArray[Any] = codes.view(dtype)
    return typed


def _item(array: NDArray[Any], i: int) -> NDArray[Any]:
    """Return item i of a batch, or the only one."""
    item: NDArray[Any] = array[min(i, len(array) - 1)]
    return item


def arithmetic(rule: Mac, fmt: Format) -> mac_kernel.Arithmetic:
    """Return how a rule rounds to a format."""
    parameters, beyond = fmt.params, mac_kernel.INFINITE
    if rule.overflow == "saturate" or not (fmt.has_inf or fmt.has_nan):
        beyond = mac_kernel.LARGEST
    elif not fmt.has_inf:
        beyond = mac_kernel.NOT_A_NUMBER
    return mac_kernel.Arithmetic(
        parameters.p, parameters.emin, fmt.emax, _MODE[rule.rounding], rule.flush,
        rule.overflow == "inf", float(fmt.max), -float(fmt.min), beyond, fmt.has_negative_zero,
        rule.tiny == "unbounded", rule.negative_zero,
    )  # fmt: skip


def mac(a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: Mac) -> NDArray[Any]:
    """Multiply-adds with one rounding a step."""
    if rule.steps == Mac():
        begin = None if c is None else c.astype(np.float32)
        sums = fast.fma(_batched(decoded(a)), b, begin)
        return sums if out.name == "float32" else round_to(sums, out)
    if fast.two_chains_apply(a, b, c, out, rule):
        return one_nan(fast.two_chains(a, b, c, rule), rule)
    acc, rounded = get_format(rule.acc_format), rule.product_format or (not rule.fused)
    prod = get_format(rule.product_format or rule.acc_format)
    p, f = (arithmetic(rule, g) for g in (prod, acc))
    flavour = fast.mac_flavour(a.fmt, b.fmt, rule, p, f)
    if flavour is not None:
        shape = (math.prod(a.shape[:-2]), a.shape[-2], b.shape[-1])
        first = np.zeros(shape) if c is None else as_float64(c)
        return round_to(fast.mac(a, b, first, rule, p, f, flavour), out)
    left = as_float64(_batched(decoded(a)))
    right = _kept(
        b, "columns",
        lambda: np.ascontiguousarray(as_float64(_batched(decoded(b)).transpose(0, 2, 1))),
    )  # fmt: skip
    if rule.flush:
        left = fast.flushed(left, a.fmt.min_normal)
        right = fast.flushed(right, b.fmt.min_normal)
    batch, m, depth = left.shape
    n = right.shape[1]
    values = np.empty((batch, m, n))
    start = np.zeros((batch, m, n)) if c is None else as_float64(c)
    group = rule.group or depth
    over_items(
        lambda i, lo, hi: mac_kernel.matmul(
            left[i], _item(right, i), start[i], values[i], lo, hi, _ORDER[rule.order], group,
            bool(rounded), p, f,
        ),
        batch, m,
    )  # fmt: skip
    return round_to(values, out)


def exact(a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: Exact) -> NDArray[Any]:
    """One rounding of the exact sum, to the output format (with groups: of each group's)."""
    if np.float64 not in (a.fmt.value_dtype, b.fmt.value_dtype):
        bits = fast.sum_bits(a, b)
        if fast.exact_groups_apply(rule, bits, out):
            shape = (math.prod(a.shape[:-2]), a.shape[-2], b.shape[-1])
            begin = np.zeros(shape) if c is None else as_float64(c)
            return round_to(fast.exact_groups(a, b, begin, rule, out), out)
        if rule.group is None and bits <= 53 and not rule.negative_zero:
            return round_to(fast.exact_sum(a, b, c), out)
    left, right = _batched(decoded(a)), _batched(decoded(b))
    depth = left.shape[-1]
    if rule.group is not None and rule.group < depth:
        for k in range(0, depth, rule.group):
            part = slice(k, k + rule.group)
            c = _exact(left[..., part], right[:, part], c, out, rule)
        assert c is not None
        return c
    return _exact(left, right, c, out, rule)


def _halved(left: NDArray[Any], right: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return float32 operands of four times the depth whose products add up to the same sum."""

    def parts(x: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        high = x.astype(np.float32)  # the rest has at most 32 - 24 bits, so float32 holds it
        return high, (x - high).astype(np.float32)

    (ah, al), (bh, bl) = parts(left), parts(right)
    return np.concatenate([ah, ah, al, al], -1), np.concatenate([bh, bl, bh, bl], -2)


def _exact(
    left: NDArray[Any], right: NDArray[Any], c: NDArray[Any] | None, out: Format, rule: Exact
) -> NDArray[Any]:
    if np.float64 in (left.dtype, right.dtype):  # integers that float32 does not hold
        left, right = _halved(left, right)
    batch, m, _ = left.shape
    n = right.shape[-1]
    codes = np.empty((batch, m, n), np.uint32)
    start = np.zeros((batch, m, n), np.float32) if c is None else c.astype(np.float32)
    rows = np.ascontiguousarray(left).view(np.uint32)
    columns = np.ascontiguousarray(right.transpose(0, 2, 1)).view(np.uint32)
    begin = np.ascontiguousarray(start).view(np.uint32)
    over_items(
        lambda i, lo, hi: exact_kernel.matmul(
            rows[i], _item(columns, i), begin[i], codes[i], lo, hi, out.params, rule.negative_zero
        ),
        batch, m,
    )  # fmt: skip
    return codes.astype(out.code_dtype).view(DTYPES[out.name])


def fused(
    a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: Fused | TwoStage
) -> NDArray[Any]:
    """Align-and-truncate blocks, chained through the accumulator."""
    if isinstance(rule, Fused) and fast.fp8_applies(a, b, c, out, rule):
        return fast.fp8(a, b, c, rule)
    if isinstance(rule, Fused) and inside.double_applies(a, b, out, rule):
        return one_nan(inside.double(a, b, c, rule), rule)
    block = _block(rule, a.fmt, b.fmt, out)
    usual = isinstance(rule, TwoStage) or (rule.rounding is None and not block.floor)
    sums = fast.align(a, b, planes, c, block) if usual else None
    if sums is not None:
        return _store(sums, out, rule) if isinstance(rule, Fused) else round_to(sums, out)
    left, right = planes(a, False), planes(b, True)
    batch, m = left[0].shape[:2]
    n = right[0].shape[1]
    start = np.zeros((batch, m, n)) if c is None else as_float64(c)
    values = np.empty((batch, m, n))
    over_items(
        lambda i, lo, hi: fused_kernel.matmul(
            *(p[i] for p in left), *(_item(p, i) for p in right), start[i], values[i], lo, hi, block
        ),
        batch, m,
    )  # fmt: skip
    return _store(values, out, rule) if isinstance(rule, Fused) else round_to(values, out)


def _block(rule: Fused | TwoStage, a: Format, b: Format, out: Format) -> fused_kernel.Block:
    fraction = a.precision + b.precision - 2
    if isinstance(rule, TwoStage):
        limit = 128 if a.emax == 127 else 0
        return fused_kernel.Block(
            3, rule.group, rule.align_bits, fraction, rule.zero_products, _NO_LIMIT, rule.streams,
            rule.sum_bits, limit, 24, -126, 127, 0, 24,
        )  # fmt: skip
    least = _NO_LIMIT if rule.min_exponent is None else rule.min_exponent
    if out.name == "float32":
        result = (rule.keep_bits + 1, -126, 127, _MODE[rule.rounding or "rtz"], 24)
    else:
        result = (11, -14, 15, _MODE[rule.rounding or "rne"], 11)
    return fused_kernel.Block(
        _ACCUMULATOR[rule.accumulator], rule.group, rule.align_bits, fraction, rule.zero_products,
        least, 1, 0, 0, *result, rule.align == "floor",
    )  # fmt: skip


def _store(values: NDArray[Any], out: Format, rule: Fused | ScaledFp4) -> NDArray[Any]:
    """Write results with the NaN pattern of a rule, NVIDIA's unless it says otherwise."""
    quiet = isinstance(rule, Fused) and rule.nan == "quiet"
    if out.name == "float32":
        bits = np.empty(values.shape, np.uint32)
        fused_kernel.store_float32(values.reshape(-1), bits.reshape(-1))
        if quiet:
            bits[np.isnan(values)] = 0x7FC00000
        return bits.view(np.float32)
    halves = values.astype(np.float16)
    halves.view(np.uint16)[np.isnan(values)] = 0x7E00 if quiet else 0x7FFF
    return halves


@cache
def _classes(fmt: Format) -> NDArray[np.uint8]:
    """Return 0 finite, 1 infinite, 2 NaN for every code of a format."""
    every = fmt.decode_bits(np.arange(1 << fmt.bits, dtype=np.int64))
    return np.where(np.isnan(every), 2, np.where(np.isinf(every), 1, 0)).astype(np.uint8)


def planes(q: QTensor, transposed: bool) -> fast.Planes:
    """Signed significands, exponents and classes, [batch, M, K] (b: [batch, N, K]).

    Power-of-two block scales are added to the exponents; a NaN scale makes its block NaN.
    """

    def make() -> fast.Planes:
        codes = _batched(q.codes)
        codes = np.ascontiguousarray(codes.transpose(0, 2, 1) if transposed else codes)
        f = q.fmt
        sig, exp = np.empty(codes.shape, np.int32), np.empty(codes.shape, np.int32)
        cls = np.empty(codes.shape, np.uint8)
        trailing = f.precision - 1
        fused_kernel.split(
            codes.reshape(-1), trailing, f.bits - 1 - trailing, f.bias, _classes(f),
            sig.reshape(-1), exp.reshape(-1), cls.reshape(-1),
        )  # fmt: skip
        if q.block_shape is not None and q.scale_codes is not None:
            scale = _batched(q.scale_codes.astype(np.int32))
            scale = scale.transpose(0, 2, 1) if transposed else scale
            block = max(q.block_shape)
            wide = np.repeat(scale, block, axis=-1)[..., : codes.shape[-1]]
            exp += wide - 127
            cls[wide == 255] = 2
        return sig, exp, cls

    made: fast.Planes = _kept(q, f"planes{transposed}", make)
    return made


def fp4(
    a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: ScaledFp4
) -> NDArray[Any]:
    """Blackwell's k = 64 block-scaled FP4."""
    if inside.fp4_applies(a, b):
        return one_nan(inside.fp4(a, b, c, rule), rule)

    def twice(q: QTensor, transposed: bool) -> NDArray[np.int8]:
        values = _batched(decoded(q) * 2)
        return np.ascontiguousarray(values.transpose(0, 2, 1) if transposed else values, np.int8)

    left, right = twice(a, transposed=False), twice(b, transposed=True)
    scale_a, fraction_a = _scale_planes(a, transposed=False)
    scale_b, fraction_b = _scale_planes(b, transposed=True)
    batch, m, _ = left.shape
    n = right.shape[1]
    start = np.zeros((batch, m, n)) if c is None else as_float64(c)
    values = np.empty((batch, m, n))
    over_items(
        lambda i, lo, hi: scaled_fp4.matmul(
            left[i], _item(right, i), *(p[i] for p in scale_a), *(_item(p, i) for p in scale_b),
            fraction_a + fraction_b, start[i], values[i], lo, hi, rule.align_bits,
        ),
        batch, m,
    )  # fmt: skip
    return _store(values, out, rule)


def _scale_planes(q: QTensor, *, transposed: bool) -> tuple[tuple[NDArray[Any], ...], int]:
    """Split scale codes for every run of 16: significand, exponent, whether NaN; fraction bits."""
    codes = inside.run_scales(q, transposed=transposed)
    meaning = inside.scale_meaning(q)
    parts = (meaning.significands, meaning.exponents, meaning.nan)
    return tuple(part[codes].astype(part.dtype) for part in parts), meaning.fraction
