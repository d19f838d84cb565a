"""Branch-free stochastic rounding from float32, proven bit-equal to the generic kernel.

Layout and rules as in `float32`. Random bits are words of Philox by the number of the element; a
kernel that meets a draw whose lower word decides says so, and the generic kernel does it again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numsim.kernels.convert.float32 import Fast, limited
from numsim.kernels.convert.philox import fill_words
from numsim.kernels.instructions import shl, shr, wide_vectors
from numsim.kernels.ir.encode import signed_bytes
from numsim.kernels.jit import inline, kernel

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_FRACTION = np.uint32(0x7FFFFF)
_HIDDEN = np.uint32(0x800000)
_ZERO, _ONE = np.uint32(0), np.uint32(1)
SUB_BITS = 24  # fraction bits of a subnormal that `float_sr_narrow` looks at, at least


class Noise(NamedTuple):
    """A stochastic rounding that looks at 32 bits or fewer of the discarded fraction, uint32."""

    key: np.uint32
    seen: np.uint32  # bits of the 32-bit fraction that the adder sees
    drawn: np.uint32  # bits of the random word that are added
    half: np.uint32  # the bit that half_offset adds below them
    full: np.uint32  # all ones where fraction bits beyond 32 count too


def noise(bits: int, half_offset: bool, seed: int) -> Noise:
    """Return the scalars for `bits` random bits (64: all)."""
    count = min(bits, 32)
    drawn = (0xFFFFFFFF << (32 - count)) & 0xFFFFFFFF
    half = 1 << (31 - count) if half_offset else 0
    full = 0xFFFFFFFF if bits > 32 else 0
    return Noise(*(np.uint32(n) for n in (seed, drawn | half, drawn, half, full)))


@inline
def _bits(x: Any, by: Any, quotients: Any) -> Any:
    """Return float32 bits, or those of the numbers divided by `by`, in `quotients`."""
    if by is None:
        return x
    numbers = x.view(np.float32)
    for i in range(x.size):
        quotients[i] = numbers[i] / by
    return quotients.view(np.uint32)[: x.size]


@kernel
def float_sr(
    x: np.ndarray, by: Any, out: np.ndarray, f: Fast, noise: Noise, number: np.uint64
) -> tuple[bool, bool]:
    """Round float32 bits stochastically, the first with the random bits of stream `number`.

    `by`: a float32 by which numbers are divided first, or None.
    Return (whether NaN was met, whether the lower random word of some element matters).
    """
    wide_vectors()
    blocks, quotients = np.empty(1025, np.uint64), np.empty(2048, np.float32)
    odd = np.int64(number & np.uint64(1))
    top, open_ = _ZERO, _ZERO
    for start in range(0, x.size, 2048):
        source, target = _bits(x[start : start + 2048], by, quotients), out[start : start + 2048]
        fill_words(blocks[: source.size // 2 + 1], number + np.uint64(start), noise.key)
        words = blocks.view(np.uint32)[odd : odd + source.size]
        for i in range(source.size):
            b = source[i]
            a = np.uint32(b & _MAGNITUDE)
            top = max(top, a)
            field = max(shr(a, np.uint32(23)), _ONE)
            sig = np.uint32(np.uint32(a & _FRACTION) | (_HIDDEN if a >= _HIDDEN else _ZERO))
            e = max(field, f.min_field)
            shift = np.uint32(np.uint32(e - field) + f.cut)
            near = min(shift, np.uint32(32))
            far = np.uint32(min(shift, np.uint32(63)) - near)
            # the discarded fraction in units of 2**-32 (sig < 2**24: a shift of 31 leaves 0)
            fraction = shr(shl(sig, np.uint32(np.uint32(32) - near)), far)
            low = np.uint32(shr(sig, min(near, np.uint32(31))) + shl(
                np.uint32(e - f.min_field), f.stored))  # fmt: skip
            bar = np.uint32(~np.uint32(np.uint32(words[i] & noise.drawn) | noise.half))
            up = np.uint32(fraction & noise.seen) > np.uint32(bar & noise.seen)
            open_ = np.uint32(open_ | (far if fraction == bar else _ZERO))
            target[i] = limited(b, a, np.uint32(low + (_ONE if up else _ZERO)), f)
    return bool(top > _INFINITY), bool(np.uint32(open_ & noise.full) != _ZERO)


@kernel
def float_sr_narrow(
    x: np.ndarray, by: Any, out: np.ndarray, f: Fast, noise: Noise, to_fixed: np.float32,
    number: np.uint64,
) -> tuple[bool, bool]:  # fmt: skip
    """Do what `float_sr` does for formats of few bits, by additions alone.

    A normal number is its float32 pattern plus random bits below the cut. A subnormal one is a
    fixed-point number of 31 bits, a multiple of ``1 / to_fixed``; where its cut-off bits, or
    random bits below them, decide, the caller is told.
    """
    wide_vectors()
    blocks, quotients = np.empty(1025, np.uint64), np.empty(2048, np.float32)
    odd = np.int64(number & np.uint64(1))
    top, open_ = _ZERO, _ZERO
    cuts = _cuts(f, noise)
    for start in range(0, x.size, 2048):
        source, target = _bits(x[start : start + 2048], by, quotients), out[start : start + 2048]
        fill_words(blocks[: source.size // 2 + 1], number + np.uint64(start), noise.key)
        words = blocks.view(np.uint32)[odd : odd + source.size]
        for i in range(source.size):
            b = source[i]
            a = np.uint32(b & _MAGNITUDE)
            top = max(top, a)
            q, undecided = _narrow(a, words[i], to_fixed, f, noise, cuts)
            open_ = np.uint32(open_ | undecided)
            target[i] = limited(b, a, q, f)
    return bool(top > _INFINITY), bool(open_ != _ZERO)


@kernel
def byte_sr_narrow(
    x: np.ndarray, by: Any, out: np.ndarray, f: Fast, noise: Noise, to_fixed: np.float32,
    number: np.uint64,
) -> tuple[bool, bool]:  # fmt: skip
    """Do what `float_sr_narrow` does where `takes_bytes`: signs and NaN come 64 at a time."""
    wide_vectors()
    blocks, quotients = np.empty(1025, np.uint64), np.empty(2048, np.float32)
    odd = np.int64(number & np.uint64(1))
    met, open_ = np.int64(0), _ZERO
    cuts = _cuts(f, noise)
    whole = x.size // 64 * 64
    for start in range(0, whole, 2048):
        source = _bits(x[start : min(start + 2048, whole)], by, quotients)
        target = out[start : start + 2048]
        fill_words(blocks[: source.size // 2 + 1], number + np.uint64(start), noise.key)
        words = blocks.view(np.uint32)[odd : odd + source.size]
        for i in range(source.size):
            a = np.uint32(source[i] & _MAGNITUDE)
            q, undecided = _narrow(a, words[i], to_fixed, f, noise, cuts)
            open_ = np.uint32(open_ | undecided)
            target[i] = min(q, f.limit)
        met |= signed_bytes(source, source.size // 64, target, f)
    rest = number + np.uint64(whole)
    few, more = float_sr_narrow(x[whole:], by, out[whole:], f, noise, to_fixed, rest)
    return few or met != 0, more or open_ != _ZERO


class _Cuts(NamedTuple):
    """What `_narrow` derives from a format and a stochastic rounding, all uint32."""

    least: np.uint32
    base: np.uint32
    seen_up: np.uint32
    cut_seen: np.uint32
    point: np.uint32  # fraction bits of fixed point
    down: np.uint32
    fixed_seen: np.uint32
    ones: np.uint32
    deep: np.uint32


@inline
def _cuts(f: Fast, noise: Noise) -> _Cuts:
    seen_up = np.uint32(np.uint32(32) - f.cut)
    point = np.uint32(np.uint32(31) - np.uint32(f.stored + _ONE))
    down = np.uint32(np.uint32(32) - point)
    # all seen bits fit: nothing is cut off
    deep = _ONE if shl(shr(noise.seen, down), down) != noise.seen else _ZERO
    return _Cuts(
        shl(f.min_field, np.uint32(23)),
        shl(np.uint32(f.min_field - _ONE), f.stored),
        seen_up,
        np.uint32(~shr(np.uint32(~noise.seen), seen_up)),
        point,
        down,
        np.uint32(~shr(np.uint32(~noise.seen), down)),
        np.uint32(shl(_ONE, point) - _ONE),
        np.uint32(deep | (noise.full & _ONE)),
    )


@inline
def _narrow(
    a: np.uint32, drawn: np.uint32, to_fixed: np.float32, f: Fast, noise: Noise, k: _Cuts
) -> tuple[np.uint32, np.uint32]:
    """Return the magnitude code before overflow, and whether bits that are cut off decide."""
    word = np.uint32(np.uint32(drawn & noise.drawn) | noise.half)
    normal = shr(np.uint32(np.uint32(a & k.cut_seen) + shr(word, k.seen_up)), f.cut)
    small = np.float32(np.uint32(min(a, k.least)).view(np.float32) * to_fixed)
    fixed = np.uint32(np.uint32(np.int32(small)) & k.fixed_seen)
    total = np.uint32(fixed + shr(word, k.down))
    tiny = a < k.least
    undecided = k.deep if tiny and np.uint32(total & k.ones) == k.ones else _ZERO
    return shr(total, k.point) if tiny else np.uint32(normal - k.base), undecided
