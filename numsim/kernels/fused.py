"""The align-and-truncate dot product of tensor cores, for any group, width and operand format.

One block: every product and the accumulator are cut, toward zero, to `align_bits` fraction bits
below the largest exponent among them; the pieces are added exactly; the sum is rounded once.
"""

from __future__ import annotations

import numpy as np

from numsim.kernels.jit import inline, kernel
from numsim.kernels.round import RNE, round_quotient, top_bit

FINITE, INFINITE, NOT_A_NUMBER = 0, 1, 2
_NO_TERM = -(1 << 30)
_NAN32 = np.uint32(0x7FFFFFFF)


@kernel
def split(
    bits: np.ndarray, trailing: int, exponent_bits: int, bias: int, nan_class: np.ndarray,
    sig: np.ndarray, exp: np.ndarray, cls: np.ndarray,
) -> int:  # fmt: skip
    """Split codes into signed significands, exponents of the leading one's place, classes.

    A subnormal keeps the smallest exponent and a significand below ``2**trailing``.
    `nan_class` maps a code to its class where it has 2**16 entries or fewer; returns the number
    of codes that are not finite.
    """
    special = 0
    field_mask = (1 << exponent_bits) - 1
    for i in range(bits.size):
        c = np.int64(bits[i])
        field = (c >> trailing) & field_mask
        m = c & ((1 << trailing) - 1)
        if field:
            m |= 1 << trailing
        sig[i] = -m if (c >> (trailing + exponent_bits)) & 1 else m
        exp[i] = max(field, 1) - bias
        kind = nan_class[c]
        cls[i] = kind
        if kind:
            special += 1
    return special


@inline
def shift_toward_zero(magnitude: np.int64, left: np.int64) -> np.int64:
    """Return ``magnitude * 2**left`` cut to an integer; the caller bounds left shifts."""
    if left >= 0:
        return magnitude << left
    return magnitude >> min(-left, np.int64(63))


@inline
def round_sum(
    total: np.int64, scale: np.int64, precision: np.int64, emin: np.int64, emax: np.int64,
    mode: np.int64,
) -> np.float64:  # fmt: skip
    """Round ``total * 2**scale`` to a float of the given precision and exponent range.

    A value whose rounded exponent leaves the range is infinite, toward zero included. Zero is +0.
    """
    if total == 0:
        return 0.0
    negative = total < 0
    magnitude = np.uint64(-total if negative else total)
    exponent = max(top_bit(magnitude) + scale, emin)
    shift = exponent - (precision - 1) - scale
    if shift > 0:
        magnitude = round_quotient(
            magnitude, min(shift, np.int64(127)), negative, np.int64(0), mode, np.uint64(0),
            np.int64(0), np.int64(0),
        )  # fmt: skip
        scale += shift
    if magnitude == np.uint64(0):
        return 0.0
    if top_bit(magnitude) + scale > emax:
        return -np.inf if negative else np.inf
    # the significand has at most 53 bits and 2**scale is split to stay in range: exact
    half = scale // 2
    value = np.float64(magnitude) * power_of_two(half) * power_of_two(scale - half)
    return -value if negative else value


@inline
def power_of_two(n: np.int64) -> np.float64:
    """Return 2.0**n for -1022 <= n <= 1023."""
    return np.int64((n + 1023) << 52).view(np.float64)


@inline
def accumulator_parts(acc: np.float64, emin: np.int64) -> tuple[np.int64, np.int64]:
    """Split a finite accumulator into (signed 53-bit significand, exponent of its top bit).

    Below `emin` the exponent stays at `emin`, as a subnormal's does.
    """
    bits = np.float64(acc).view(np.int64)
    exponent = ((bits >> 52) & 2047) - 1023
    magnitude = (bits & ((1 << 52) - 1)) | (1 << 52)
    if exponent < emin:
        magnitude >>= min(emin - exponent, np.int64(63))
        exponent = emin
    return (-magnitude if bits < 0 else magnitude), exponent


@kernel
def matmul(
    a_sig: np.ndarray, a_exp: np.ndarray, a_cls: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_cls: np.ndarray, fraction: int,
    c: np.ndarray, out: np.ndarray, start: int, stop: int,
    group: int, align_bits: int, joins: bool, precision: int, emin: int, emax: int, mode: int,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; planes a [M, K], b [N, K] (transposed), c, out float64.

    NaN results are stored as NaN; the caller writes the unit's bit pattern.
    """
    n_columns, depth = b_sig.shape
    for i in range(start, stop):
        for j in range(n_columns):
            acc = c[i, j]
            for k0 in range(0, depth, group):
                k1 = min(k0 + group, depth)
                nan = np.isnan(acc)
                up, down = acc == np.inf, acc == -np.inf
                largest = np.int64(_NO_TERM)
                for k in range(k0, k1):
                    ca, cb = a_cls[i, k], b_cls[j, k]
                    sa, sb = np.int64(a_sig[i, k]), np.int64(b_sig[j, k])
                    if ca or cb:
                        zero = (ca == FINITE and sa == 0) or (cb == FINITE and sb == 0)
                        if ca == NOT_A_NUMBER or cb == NOT_A_NUMBER or zero:
                            nan = True
                        elif (sa < 0) != (sb < 0):
                            down = True
                        else:
                            up = True
                    elif sa != 0 and sb != 0:
                        largest = max(largest, np.int64(a_exp[i, k]) + np.int64(b_exp[j, k]))
                if nan or (up and down):
                    acc = np.nan
                    break
                if up or down:
                    acc = np.inf if up else -np.inf
                    continue
                acc_sig, acc_exp = accumulator_parts(acc, np.int64(emin))
                if acc != 0 and joins:
                    largest = max(largest, acc_exp)
                if largest == _NO_TERM:
                    acc = acc + 0.0 if acc != 0 else 0.0
                    continue
                total = np.int64(0)
                for k in range(k0, k1):
                    product = np.int64(a_sig[i, k]) * np.int64(b_sig[j, k])
                    if product != 0:
                        e = np.int64(a_exp[i, k]) + np.int64(b_exp[j, k])
                        left = np.int64(align_bits) - fraction - (largest - e)
                        piece = shift_toward_zero(abs(product), left)
                        total += piece if product > 0 else -piece
                if joins and acc != 0:
                    left = np.int64(align_bits) - 52 - (largest - acc_exp)
                    piece = shift_toward_zero(abs(acc_sig), left)
                    total += piece if acc_sig > 0 else -piece
                acc = round_sum(
                    total, largest - align_bits, np.int64(precision), np.int64(emin),
                    np.int64(emax), np.int64(mode),
                )  # fmt: skip
            out[i, j] = acc


@kernel
def store_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Write float64 values that float32 holds exactly as bits; NaN is 0x7FFFFFFF (NVIDIA)."""
    for i in range(values.size):
        v = values[i]
        out[i] = _NAN32 if np.isnan(v) else np.float32(v).view(np.uint32)


__all__ = ["RNE", "matmul", "split", "store_float32"]
