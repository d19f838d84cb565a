"""One function a kind of unit: operands as kernels want them, packed once per tensor."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.convert import encode
from numsim.errors import NumsimError, UnsupportedError
from numsim.formats import Format
from numsim.kernels import exact as exact_kernel
from numsim.kernels import fused as fused_kernel
from numsim.kernels import gemm_fma, gemm_hopper, gemm_int
from numsim.kernels import integer as integer_kernel
from numsim.kernels.jit import over_range
from numsim.quant import QTensor
from numsim.targets.types import Fused, IntSum

_OVERFLOW = {"wrap": 0, "saturate": 1, "raise": 2}
_FAST_LOW, _FAST_HIGH = 2.0**-90, 2.0**120  # accumulators that the Hopper fast path takes


def _kept(q: QTensor, key: str, make: Any) -> Any:
    """Return ``q.packed[key]``, made once."""
    if key not in q.packed:
        q.packed[key] = make()
    return q.packed[key]


def _batched(array: NDArray[Any]) -> NDArray[Any]:
    """[..., M, K] -> [batch, M, K]."""
    return array.reshape(-1, *array.shape[-2:])


def fma(a: QTensor, b: QTensor, c: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Sequential float32 FMA: [batch, M, K] by [batch or 1, K, N]."""
    packed = _kept(b, "fma", lambda: gemm_fma.pack_b(_batched(b.values())))
    out: NDArray[np.float32] = gemm_fma.gemm_fma(_batched(a.values()), packed, c=c)
    return out


def exact(a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format) -> NDArray[Any]:
    """One rounding of the exact sum, to the output format."""
    dtype = {"float32": np.float32, "float16": np.float16}.get(out.name, ml_dtypes.bfloat16)
    left, right = _batched(a.values()), _batched(b.values())
    if c is None and _sum_fits_float64(left, right):
        sums = gemm_fma.gemm_fma(left.astype(np.float64), right.astype(np.float64))
        return encode(sums, out, overflow="special").view(dtype)
    batch, m, _ = left.shape
    n = right.shape[-1]
    codes = np.empty((batch, m, n), np.uint32)
    start = np.zeros((batch, m, n), np.float32) if c is None else c.astype(np.float32)
    for i in range(batch):
        rows = np.ascontiguousarray(left[i]).view(np.uint32)
        columns = np.ascontiguousarray(right[min(i, len(right) - 1)].T).view(np.uint32)
        begin = np.ascontiguousarray(start[i]).view(np.uint32)
        over_range(
            lambda lo, hi, rows=rows, columns=columns, begin=begin, i=i: exact_kernel.matmul(
                rows, columns, begin, codes[i], lo, hi, out.params
            ),
            m,
        )
    return codes.astype(out.code_dtype).view(dtype)


def _sum_fits_float64(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether every partial sum of the products is a multiple of one quantum below 2**53 of it."""
    bits = a.shape[-1].bit_length()
    for x in (a, b):
        if not x.size:
            return True
        raw = np.ascontiguousarray(x).view(np.uint32) & np.uint32(0x7FFFFFFF)
        high = int(raw.max()) >> 23
        if high == 255:
            return False
        nonzero = raw[raw != 0]
        if not nonzero.size:
            return True
        low_bit = (nonzero | np.uint32(0x800000)) & np.uint32(0xFFFFFF)
        low_bit &= ~low_bit + np.uint32(1)  # lowest set bit of the significand
        trailing = np.frexp(low_bit.astype(np.float32))[1] - 1
        low = int(((nonzero >> np.uint32(23)).astype(np.int64) - 23 + trailing).min())
        bits += high + 1 - low
    return bits <= 53


def integer(
    a: QTensor, b: QTensor, c: NDArray[np.int64] | None, rule: IntSum, name: str
) -> NDArray[Any]:
    """Integer codes added in an accumulator of `acc_bits` bits."""
    dtype = np.int32 if rule.acc_bits <= 32 else np.int64
    left, right = _batched(a.codes), _batched(b.codes)
    k = left.shape[-1]
    widest = a.fmt.bits + b.fmt.bits
    if widest + k.bit_length() > 63:
        raise UnsupportedError(
            f"matmul: {name} adds products of {widest} bits over K = {k} in 63 bits at most; "
            "use narrower operands or ideal.exact"
        )
    small = left.dtype.itemsize == 1 and right.dtype.itemsize == 1
    if small and rule.acc_bits == 32 and rule.overflow == "wrap":
        packed = _kept(b, "int8", lambda: gemm_int.pack_b(right))
        sums: NDArray[np.int32] = gemm_int.gemm_int8(left, packed)
        return sums if c is None else (sums + c.astype(np.int32))
    batch, m, n = len(left), left.shape[1], right.shape[-1]
    out = np.empty((batch, m, n), np.int64)
    start = np.zeros((batch, m, n), np.int64) if c is None else c
    low, high = -(1 << (rule.acc_bits - 1)), (1 << (rule.acc_bits - 1)) - 1
    mode = _OVERFLOW[rule.overflow]
    for i in range(batch):
        found: list[NDArray[np.int64]] = []

        def rows(lo: int, hi: int, i: int = i, found: list[NDArray[np.int64]] = found) -> None:
            place = np.full(3, -1, np.int64)
            found.append(place)
            integer_kernel.matmul(
                left[i], right[min(i, len(right) - 1)], start[i], out[i], lo, hi, low, high, mode,
                place,
            )  # fmt: skip

        over_range(rows, m)
        places = sorted(tuple(int(v) for v in p) for p in found if p[0] >= 0)
        if places:
            row, column, step = places[0]
            raise NumsimError(
                f"matmul: {name} with overflow='raise': the {rule.acc_bits}-bit accumulator "
                f"overflows at row {row}, column {column}, k = {step}"
                + (f" of batch {i}" if batch > 1 else "")
                + "; widen acc_bits or choose wrap or saturate"
            )
    if rule.overflow == "wrap" and rule.acc_bits < 64:
        unused = np.int64(64 - rule.acc_bits)
        out = (out << unused) >> unused
    return out.astype(dtype)


def fused(a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: Fused) -> NDArray[Any]:
    """Align-and-truncate blocks, chained through the accumulator."""
    if _hopper_fp8_applies(a, b, c, out, rule):
        return _hopper_fp8(a, b, c)
    left, right = _planes(a, transposed=False), _planes(b, transposed=True)
    batch, m = left[0].shape[:2]
    n = right[0].shape[1]
    with np.errstate(invalid="ignore"):  # signalling NaN
        start = np.zeros((batch, m, n)) if c is None else c.astype(np.float64)
    values = np.empty((batch, m, n))
    fraction = a.fmt.precision + b.fmt.precision - 2
    if out.name == "float32":
        precision, emin, emax, mode = rule.keep_bits + 1, -126, 127, 2  # truncated
    else:
        precision, emin, emax, mode = 11, -14, 15, 0  # nearest even
    for i in range(batch):
        x = [p[i] for p in left]
        y = [p[min(i, len(p) - 1)] for p in right]
        over_range(
            lambda lo, hi, x=x, y=y, i=i: fused_kernel.matmul(
                *x, *y, fraction, start[i], values[i], lo, hi, rule.group, rule.align_bits, True,
                precision, emin, emax, mode,
            ),
            m,
        )  # fmt: skip
    return _store(values, out)


def _store(values: NDArray[np.float64], out: Format) -> NDArray[Any]:
    if out.name == "float32":
        bits = np.empty(values.shape, np.uint32)
        fused_kernel.store_float32(values.reshape(-1), bits.reshape(-1))
        return bits.view(np.float32)
    halves = values.astype(np.float16)
    halves.view(np.uint16)[np.isnan(values)] = 0x7FFF
    return halves


def _planes(q: QTensor, *, transposed: bool) -> tuple[NDArray[Any], ...]:
    """Signed significands, exponents and classes, [batch, M, K] (b: [batch, N, K])."""

    def make() -> tuple[NDArray[Any], ...]:
        codes = _batched(q.codes)
        codes = np.ascontiguousarray(codes.transpose(0, 2, 1) if transposed else codes)
        f = q.fmt
        sig, exp = np.empty(codes.shape, np.int32), np.empty(codes.shape, np.int32)
        cls = np.empty(codes.shape, np.uint8)
        every = f.decode_bits(np.arange(1 << f.bits, dtype=np.int64))
        kinds = np.where(np.isnan(every), 2, np.where(np.isinf(every), 1, 0)).astype(np.uint8)
        trailing = f.precision - 1
        fused_kernel.split(
            codes.reshape(-1), trailing, f.bits - 1 - trailing, f.bias, kinds, sig.reshape(-1),
            exp.reshape(-1), cls.reshape(-1),
        )  # fmt: skip
        return sig, exp, cls

    planes: tuple[NDArray[Any], ...] = _kept(q, f"planes{transposed}", make)
    return planes


def _hopper_fp8_applies(
    a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: Fused
) -> bool:
    """Whether the fast kernel covers the case: same rule, finite operands, moderate C."""
    if rule != Fused(32, 13, 13) or out.name != "float32" or {a.fmt.bits, b.fmt.bits} != {8}:
        return False
    if not all(_kept(q, "finite", lambda q=q: bool(np.isfinite(q.values()).all())) for q in (a, b)):
        return False
    if c is None:
        return True
    size = np.abs(c)
    return bool(((size == 0) | ((size >= _FAST_LOW) & (size <= _FAST_HIGH))).all())


def _hopper_fp8(a: QTensor, b: QTensor, c: NDArray[Any] | None) -> NDArray[np.float32]:
    left = _batched(a.values())
    right = _batched(b.values())
    out = np.empty((len(left), left.shape[1], right.shape[-1]), np.float32)
    packs = _kept(b, "hopper", lambda: [gemm_hopper.pack_b(x, b.fmt.emin) for x in right])
    for i in range(len(left)):
        out[i] = gemm_hopper.gemm_hopper_fp8(
            gemm_hopper.pack_a(left[i], a.fmt.emin), packs[min(i, len(packs) - 1)],
            c=None if c is None else c[i],
        )  # fmt: skip
    return out
