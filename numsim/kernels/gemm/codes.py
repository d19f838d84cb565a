"""The right operand as codes: 1, 2 or 4 bytes a weight, decoded a cache-sized piece at a time.

Planes and values of a whole matrix take 4 to 8 bytes a weight; read for a few rows of the left
operand, memory is the limit, and a network's weights no longer fit. So the panels hold codes, and
`cover_codes` decodes a run of one panel into the layout that a micro-kernel reads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.np.numpy_support import from_dtype

from numsim.kernels.convert.decode import Codes, float_bits
from numsim.kernels.gemm.fma import even_groups, tile_rows, whole_panels
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.ir import simd
from numsim.kernels.ir.codes import aligned_planes
from numsim.kernels.jit import PACKED, expanded, grain_of, inline, kernel, over_range

Array = npt.NDArray[Any]
BLOCK = 256  # k of one panel that is decoded at a time: what it becomes stays in the first cache
_NEAR = 1 << 18  # words of the left operand that stay in the second cache
_TYPES: dict[Any, Any] = {}
GROUP = 64  # row tiles that use a decoded panel before the next is decoded


class PackedCodes(NamedTuple):
    """The right operand, packed once.

    Fields: `panels` [1 or batch, panels, steps, columns per panel, codes a column and step],
    unsigned, 0 where there is nothing; `lines`, its N; `in_place`: the panels are a view of the
    codes themselves.
    """

    panels: Array
    lines: int
    in_place: bool = False


class Fields(NamedTuple):
    """How a float format's codes are read, all uint32; values are finite, code 0 is zero."""

    magnitude: np.uint32  # mask
    sign_bit: np.uint32
    sign_up: np.uint32  # places from there to the sign of float32
    trailing: np.uint32  # fraction bits
    fraction: np.uint32  # mask
    bias: np.uint32
    up: np.uint32  # places from the fraction to that of float32
    kept: np.uint32  # mask and addend that make float32 of a normal magnitude in that place:
    rebias: np.uint32  # its value, or its significand alone
    quantum: np.uint32  # float32 bits of the smallest subnormal, or of its significand
    leading: np.uint32 = np.uint32(0)  # 1: a subnormal's exponent is that of its leading bit


def fields(
    bits: int, precision: int, bias: int, signed: bool, *, whole: bool = True, leading: bool = False
) -> Fields:
    """Return how codes of a float format of at most 24 bits of precision are read.

    Not `whole`: as significands between 0 and 2, for formats whose values or products leave the
    normal range of float32. `leading`: exponents of subnormals, as values, are those of their
    leading bits.
    """
    width, trailing = bits - signed, precision - 1
    least = 1 - bias - trailing if whole else -trailing
    numbers = (
        (1 << width) - 1, 1 << width if signed else 0, 31 - width if signed else 0, trailing,
        (1 << trailing) - 1, bias, 23 - trailing, 0x7FFFFFFF if whole else 0x7FFFFF,
        127 - bias << 23 if whole else 0x3F800000, max(least + 127, 0) << 23, leading,
    )  # fmt: skip
    return Fields(*(np.uint32(int(n) & 0xFFFFFFFF) for n in numbers))


def as_halves(how: Fields) -> bool:
    """Whether float16 holds such codes, of eight bits, but for its bias."""
    finite = how.bias == 15 or how.magnitude >> how.trailing < 31
    return bool(how.sign_bit == 128 and how.trailing >= 2 and finite)


def power_in_halves(how: Fields) -> int:
    """Return e: read as float16, such a code is 2**e times its value.

    >>> power_in_halves(fields(8, 4, 7, True)), power_in_halves(fields(8, 4, -2, True))
    (-8, -17)
    """
    return int(np.int32(how.bias)) - 15  # a bias below 0 wraps


@cache
def nibble_table(how: Fields) -> Array | None:
    """Return the upper bytes of float16 of such codes, of at most four bits, but for its bias.

    Their lower bytes are 0. None where float16 has too few bits of an exponent.
    """
    width = int(how.magnitude).bit_length()
    away = 5 - (width - int(how.trailing))
    codes = np.arange(16)
    if away < 0 or how.magnitude | how.sign_bit > 15:
        return None
    size = (codes & int(how.magnitude)) << 15 - width >> away
    sign = np.where(codes & int(how.sign_bit), 128, 0)
    return (size >> 8 | sign).astype(np.uint8)


@inline
def _mark(codes: Array, met: Array) -> None:
    inside = np.uint32(met.size - 1)
    for i in range(codes.size):
        met[np.uint32(codes[i]) & inside] = True


@kernel
def mark(codes: Array, met: Array) -> None:
    """Set ``met[code]`` for every code; `met` has a place for each, a power of two in all."""
    _mark(codes, met)


@kernel
def outermost(codes: Array, edges: Array) -> tuple[int, ...]:
    """Return the outermost of the edges of all codes: low, high, another low and high, bits.

    ``edges[code]``: those of one code, whose bits are joined; a power of two codes in all.
    """
    places = len(edges)
    each = codes.size <= places  # sooner than to look for the codes that occur
    met = np.zeros(0 if each else places, np.bool_)
    if not each:
        _mark(codes, met)
    inside = np.uint32(places - 1)
    low = other_low = np.int64(1 << 20)
    high = other_high = np.int64(-(1 << 20))
    bits = np.int64(0)
    for i in range(codes.size if each else places):
        if each or met[i]:
            own = edges[np.uint32(codes[i]) & inside if each else np.uint32(i)]
            low, high = min(low, np.int64(own[0])), max(high, np.int64(own[1]))
            other_low = min(other_low, np.int64(own[2]))
            other_high = max(other_high, np.int64(own[3]))
            bits |= np.int64(own[4])
    return int(low), int(high), int(other_low), int(other_high), int(bits)


@kernel
def among(codes: Array, first: Array, count: Array) -> bool:
    """Return whether any of the codes, uint8, lies in one of the runs first[r] .. of count[r]."""
    found = np.uint8(0)
    for r in range(first.size):
        start, most = first[r], np.uint8(count[r] - np.uint8(1))
        for i in range(codes.size):
            found = np.uint8(found | np.uint8(np.uint8(codes[i] - start) <= most))
    return bool(found)


@kernel
def _pack(
    source: Array, panels: Array, slots: Array, order: Array, group: int, start: int, stop: int
) -> None:
    """Lay lines [batch, lines, K] out as [batch, panels, blocks, runs, width, run].

    ``slots`` [runs x run]: the k of a block's places, -1 where there is none; ``order`` [width]:
    the line of each place of a panel. Short runs of k keep what is read and what is written in
    the cache.
    """
    lines, depth = source.shape[1], source.shape[2]
    count, blocks, runs, width, run = panels.shape[1:]
    for piece in range(start, stop):
        batch, first = piece // count, piece % count * width
        used = min(width, lines - first)
        panel = panels[batch, piece % count]
        for block in range(blocks):
            for s in range(runs):
                for i in range(width):
                    if order[i] >= used:
                        continue
                    line = source[batch, first + order[i]]
                    for j in range(run):
                        slot = slots[s * run + j]
                        k = block * group + slot
                        if slot >= 0 and k < depth:
                            panel[block, s, i, j] = line[k]


@cache
def _packer(dtype: np.dtype[Any]) -> Callable[..., Any]:
    element = from_dtype(dtype)
    arrays = (simd.strided(element, 3), simd.contiguous(element, 6))
    return simd.compiled(
        _pack, *arrays, *(simd.contiguous(types.int64, 1),) * 2, *(types.int64,) * 3
    )  # fmt: skip


def pack_codes(
    codes: Array, width: int, slots: Array, group: int, *, run: int = 1, order: tuple[int, ...] = ()
) -> PackedCodes:
    """Pack codes [1 or batch, K, N], of any strides.

    Parameters: `width` columns a panel; `slots`: for each place of a block of `group` products, its
    k or -1; `run` neighbouring places of a column stand side by side; `order`: the column of each
    place of a panel, in turn where none is given.
    """
    unsigned = np.dtype(f"u{codes.dtype.itemsize}")
    lines = codes.view(unsigned).swapaxes(1, 2)
    batch, n, depth = lines.shape
    count, blocks = -(-n // width), -(-depth // group)
    panels = np.zeros((batch, count, blocks, len(slots) // run, width, run), unsigned)
    entry = _packer(unsigned)
    places = np.ascontiguousarray(slots, np.int64)
    turn = np.array(order or range(width), np.int64)
    over_range(
        lambda i, j: entry(lines, panels, places, turn, group, i, j), batch * count,
        grain=grain_of(batch * count, PACKED * codes.size),
    )  # fmt: skip
    return PackedCodes(panels.reshape(batch, count, blocks, width, len(slots)), n)


# ------------------------------------------------------------------------ what a panel becomes


@inline
def codes_at(b: Array, batch: int, panel: int, k: int, count: int) -> Array:
    """Return the codes of `count` steps of a panel from step k on, of packed b."""
    step = b.shape[3] * b.shape[4]
    at = ((batch * b.shape[1] + panel) * b.shape[2] + k) * step
    return b.reshape(-1)[at : at + count * step]


@inline
def undecoded(
    b: Array, batch: int, panel: int, k: int, count: int, scratch: Array, how: Any
) -> Array:
    """Return the words of steps of a panel for a micro-kernel that reads them as they are."""
    return codes_at(b, batch, panel, k, count)


@inline
def scratch_words(count: int) -> Array:
    """Return room for `count` int32 from the start of a cache line on.

    A vector that is stored across two lines reaches the load behind it only by way of the cache,
    which made a product with one row three times slower.
    """
    room = np.empty(count + 16, np.int32)
    ahead = (-np.int64(room.ctypes.data) & 63) >> 2
    return room[ahead : ahead + count]


@inline
def aligned_terms(
    b: Array, batch: int, panel: int, k: int, count: int, planes: Array, f: Fields
) -> Array:
    """Decode runs of 16 codes to float32 significands or values, and int32 exponents."""
    codes = codes_at(b, batch, panel, k, count)
    aligned_planes(codes, codes.size // 16, planes, f)
    return planes


@inline
def values_of_floats(
    b: Array, batch: int, panel: int, k: int, count: int, values: Array, f: Codes
) -> Array:
    """Decode float codes to float32, or to float64."""
    wide_vectors()
    source = codes_at(b, batch, panel, k, count)
    for i in range(source.size):
        values[i] = np.uint32(float_bits(np.uint32(source[i]), f)).view(np.float32)
    return values


@inline
def values_of_integers(
    b: Array, batch: int, panel: int, k: int, count: int, values: Array, f: Any
) -> Array:
    """Multiply integer codes by a quantum; `f` is (sign bit of two's complement or 0, quantum)."""
    wide_vectors()
    source = codes_at(b, batch, panel, k, count)
    for i in range(source.size):
        whole = np.int32(np.uint32(np.uint32(np.uint32(source[i]) ^ f[0]) - f[0]))
        values[i] = np.float32(np.float32(whole) * f[1])
    return values


# -------------------------------------------------------------------------------- the covering


@expanded
def cover_codes(
    micro: Callable[..., int],
    decode: Callable[..., Array],
    out: Array,
    a: Array,
    b: Array,
    scratch: Array,
    steps: int,
    block: int,
    group: int,
    start: int,
    stop: int,
    rule: Any,
    how: Any,
    blocked: bool = False,
) -> None:
    """Do what `gemm.fma.cover` does for a right operand of codes.

    `decode` (b, batch, panel, k, steps, scratch, `how`) returns what `micro` reads of a run of a
    panel, written into `scratch` or as it is. `blocked`: a is laid out as [blocks of k, tiles,
    steps of a block, rows, ...], so that it is read in order, and `micro` does the rows of all
    tiles in one call; then it has no batch.
    """
    m, n = out.shape[1], out.shape[2]
    tiles, panels, rows, width = a.shape[1], b.shape[1], a.shape[3], b.shape[3]
    groups = (tiles + group - 1) // group
    a_step = a.shape[3] * a.shape[4]
    a_tile, a_k = steps * a_step, a_step
    if blocked:
        a_tile, a_k = block * a_step, tiles * a_step
    flat = out.reshape(-1)
    deep = block * max(_NEAR // (group * a_step * block), 1)  # k for which a stays near, too
    for far in range(0, max(steps, 1), deep):
        for piece in range(start, stop):
            panel = piece % panels
            batch = piece // panels // groups
            first = piece // panels % groups * group
            last = min(first + group, tiles)
            shared = batch if b.shape[0] > 1 else 0
            for k in range(far, max(min(far + deep, steps), far + 1), block):
                count = min(block, steps - k)
                near = decode(b, shared, panel, k, count, scratch, how)
                together = last - first if blocked else 1
                for t in range(first, last, together):
                    a_at = batch * tiles * steps * a_step + t * a_tile + k * a_k
                    out_at = (batch * m + t * rows) * n + panel * width
                    left = min(together * rows, m - t * rows)
                    tile_rows(micro, a, a_at, near, 0, flat, out_at, n, left, count, rule)


def run_codes(
    entry: Callable[..., Any], out: Array, a: Array, b: PackedCodes, block: int, *rest: Any
) -> None:
    """Call a compiled kernel built on `cover_codes` over all of `out`, on all threads."""
    tiles, panels, steps = a.shape[1], b.panels, b.panels.shape[2]
    group = even_groups(tiles, GROUP)
    pieces = out.shape[0] * -(-tiles // group) * panels.shape[1]
    whole = whole_panels(out, panels.shape[1] * panels.shape[3])
    over_range(
        lambda start, stop: entry(whole, a, panels, steps, block, group, start, stop, *rest),
        pieces,
        grain=grain_of(pieces, out.size * steps * panels.shape[4]),
    )
    if whole is not out:
        out[...] = whole[:, :, : out.shape[2]]


def codes_types(a: types.Type, codes: np.dtype[Any], out: types.Type) -> tuple[Any, ...]:
    """Return the argument types of a kernel built on `cover_codes`."""
    arrays = (
        simd.contiguous(out, 3), simd.contiguous(a, 5), simd.contiguous(from_dtype(codes), 5),
    )  # fmt: skip
    return (*arrays, *(types.int64,) * 5)


def type_of(how: Any) -> Any:
    """Return the Numba type of what says how codes are read: a tuple of some kind, or a table."""
    key = type(how), getattr(how, "dtype", None)
    if key not in _TYPES:  # Numba takes 15 us to find one
        typeof: Any = numba.typeof
        _TYPES[key] = typeof(how)
    return _TYPES[key]


def uint32_tuple(kind: type[NamedTuple]) -> Any:
    """Return the Numba type of a NamedTuple of uint32."""
    made: Any = types.NamedUniTuple
    names: Any = kind
    return made(types.uint32, len(names._fields), kind)
