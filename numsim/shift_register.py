"""Random bits as a hardware shift register makes them, for ``encode(..., random=)``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.arguments import is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.convert.shift_register import run_register

# Feedback of maximal length, by width: bit k - 1 stands for x**k of the polynomial.
TAPS = {
    8: 0xB8,  # x^8 + x^6 + x^5 + x^4 + 1
    13: 0x1C80,  # x^13 + x^12 + x^11 + x^8 + 1
    16: 0xD008,  # x^16 + x^15 + x^13 + x^4 + 1
    24: 0xE10000,  # x^24 + x^23 + x^22 + x^17 + 1
    32: 0x80200003,  # x^32 + x^22 + x^2 + x + 1
}

_BLOCK = 1 << 14  # numbers made at a time


@known_floats
def lfsr(
    count: int, *, width: int = 16, random_bits: int | None = None, seed: int = 1,
    steps: int | None = None,
) -> NDArray[Any]:  # fmt: skip
    """Return the numbers that a Galois shift register delivers, one for each element.

    Parameters
    ----------
    count
        How many numbers.
    width
        Bits of the register: 8, 13, 16, 24 or 32. Its period is ``2**width - 1``.
    random_bits
        Low bits of the state that are used; None: all.
    seed
        First state, 1 to ``2**width - 1`` (a register of zeros never leaves zero).
    steps
        Shifts between two numbers; None: `random_bits`, so that no bit is used twice. RTL that
        taps the register every clock has 1.

    Returns
    -------
    uint8, uint16 or uint32 array [count]

    Raises
    ------
    NumsimError
        For a width without taps, a number outside its range, or more numbers than memory holds.

    Source
    ------
    Maximal-length feedback of Xilinx XAPP 052, table 3, and Ward and Molteno, 2007.

    Examples
    --------
    >>> lfsr(4, width=8, seed=1, steps=1)
    array([184,  92,  46,  23], dtype=uint8)
    >>> from numsim import encode
    >>> encode([1.0625] * 4, "e4m3", rounding="sr", random_bits=4, random=lfsr(4, random_bits=4))
    array([56, 56, 57, 56], dtype=uint8)
    """
    if not (is_integer(width) and int(width) in TAPS):
        raise NumsimError(f"lfsr: width is one of {', '.join(map(str, TAPS))}; got {width!r}")
    width = int(width)
    bits = width if random_bits is None else random_bits
    shifts = bits if steps is None else steps
    for name, value, low, high in (
        ("count", count, 0, 1 << 32), ("random_bits", bits, 1, width),
        ("seed", seed, 1, (1 << width) - 1), ("steps", shifts, 1, 1 << 20),
    ):  # fmt: skip
        if not (is_integer(value) and low <= value <= high):
            raise NumsimError(f"lfsr: {name} is an integer from {low} to {high}; got {value!r}")
    count, bits, seed, shifts = int(count), int(bits), int(seed), int(shifts)
    try:
        out = np.empty(count, np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)
    except MemoryError:
        raise NumsimError(
            f"lfsr: {count} numbers do not fit in memory; ask for fewer, and continue from a state "
            "of width bits as seed"
        ) from None
    states = np.empty(min(count, _BLOCK), np.uint32)
    state, mask = int(seed), np.uint32((1 << bits) - 1)
    for start in range(0, count, _BLOCK):
        part = out[start : start + _BLOCK]
        state = run_register(states[: part.size], state, TAPS[width], int(shifts))
        part[:] = states[: part.size] & mask
    return out
