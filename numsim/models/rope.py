"""Positions: rotary frequencies and their scalings, and the buckets of a relative bias.

Frequencies are computed in 40 decimal digits and rounded to float64 once; transformers rounds
them to float32, 2e-7 apart.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.kernels.elementwise import rotary as rotary_kernel
from numsim.models.arch import Arch, Rope

LARGEST_ANGLE = 2.0**20  # in radians; the range of the kernels
_PI = Decimal("3.141592653589793238462643383279502884197169399375105820974944592")


@cache
def rotary_frequencies(rope: Rope, length: int) -> tuple[float, ...]:
    """Return the angle of one position for each of the width / 2 pairs.

    Only ``dynamic`` and ``longrope`` depend on the length of the sequence.

    Source
    ------
    ``modeling_rope_utils.py`` of transformers 5; YaRN: arXiv 2309.00071; llama3: Llama 3.1;
    LongRoPE: arXiv 2402.13753.

    Examples
    --------
    >>> rotary_frequencies(Rope(theta=10000.0, width=4), 1)
    (1.0, 0.01)
    """
    with localcontext() as context:
        context.prec = 40
        base, width = Decimal(rope.theta), Decimal(rope.width)
        factor, longest = Decimal(rope.factor), Decimal(rope.longest)
        if rope.kind == "dynamic":
            growth = factor * max(length, rope.longest) / longest - (factor - 1)
            base *= growth ** (width / (width - 2))
        plain = [base ** (-2 * j / width) for j in range(rope.width // 2)]
        if rope.kind == "linear":
            plain = [f / factor for f in plain]
        elif rope.kind == "llama3":
            plain = [_llama3(f, rope) for f in plain]
        elif rope.kind == "yarn":
            plain = _yarn(plain, rope)
        elif rope.kind == "longrope":
            divisors = rope.long if length > rope.longest else rope.short
            plain = [f / Decimal(d) for f, d in zip(plain, divisors, strict=True)]
        return tuple(float(f) for f in plain)


def check_rope(rope: Rope, positions: int) -> None:
    """Raise where the angles of so many positions cannot be computed.

    Raises
    ------
    NumsimError
        Settings that divide by zero, or an angle beyond what sine and cosine are made for.
    """
    if (rope.kind, rope.width) == ("dynamic", 2) or (rope.kind == "yarn" and rope.theta <= 1):
        raise NumsimError(
            f"config.json: dynamic scaling must turn more than 2 elements of a head, and yarn "
            f"needs a rope_theta above 1; got {rope.width} and {rope.theta}; "
            "correct rope_theta if the file was edited, else report the checkpoint"
        )
    frequencies = rotary_frequencies(rope, _counted(rope, positions))
    if not max(frequencies) * (positions - 1) < LARGEST_ANGLE:
        raise NumsimError(
            f"rotary positions: the angle of the last position must be below 2**20 radians; got "
            f"{max(frequencies):.3g} a position and {positions} positions; shorten the sequence, "
            "or correct rope_theta and factor in config.json"
        )


def _counted(rope: Rope, length: int) -> int:
    """Return the length that frequencies depend on, 0 where on none: they are made once."""
    if rope.kind == "longrope":
        return rope.longest + 1 if length > rope.longest else 0
    return length if rope.kind == "dynamic" else 0


def turns_anew(rope: Rope, before: int, total: int) -> bool:
    """Return whether a sequence of `total` tokens turns the first `before` of them otherwise.

    >>> rope = Rope(1e4, 4, kind="longrope", longest=8)
    >>> turns_anew(rope, 8, 9), turns_anew(rope, 9, 10), turns_anew(rope, 0, 9)
    (True, False, False)
    """
    if not before or total <= rope.longest:
        return False
    return rope.kind == "dynamic" or (rope.kind == "longrope" and before <= rope.longest)


@cache
def natural_log(value: int) -> float:
    """Return the logarithm of a whole number, in 40 digits and rounded once.

    >>> natural_log(2)
    0.6931471805599453
    """
    with localcontext() as context:
        context.prec = 40
        return float(Decimal(value).ln())


@cache
def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Return the slope of the linear bias of each head.

    Of heads that are no power of two those of the power below come first, then every second one
    of the power above.

    Source
    ------
    ALiBi, arXiv 2108.12409, and ``build_alibi_tensor`` of Bloom in transformers.

    Examples
    --------
    >>> alibi_slopes(6)
    (0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125)
    """
    below = 1 << (heads.bit_length() - 1)
    with localcontext() as context:
        context.prec = 40

        def power(k: int, count: int) -> float:
            return float(Decimal(2) ** (Decimal(-8 * k) / count))

        first = [power(k, below) for k in range(1, below + 1)]
        rest = [power(2 * k + 1, 2 * below) for k in range(heads - below)]
    return (*first, *rest)


def alibi_bias(
    slopes: tuple[float, ...], keys: NDArray[np.int64], queries: int
) -> NDArray[np.float64]:
    """Return the bias [N or B N, T, S] of keys at positions [S] or [B, S].

    It grows with the position of the key and not with the distance: the same softmax.
    """
    rows = np.array(slopes)[:, None] * keys[..., None, :]  # [N, S] or [B, N, S]
    rows = rows.reshape(-1, 1, keys.shape[-1])
    return np.broadcast_to(rows, (len(rows), queries, keys.shape[-1]))


def _llama3(frequency: Decimal, rope: Rope) -> Decimal:
    """Keep short waves, stretch long ones, blend in between."""
    low, high, original = Decimal(rope.slow), Decimal(rope.fast), Decimal(rope.longest)
    wave = 2 * _PI / frequency
    if wave < original / high:
        return frequency
    if wave > original / low:
        return frequency / Decimal(rope.factor)
    smooth = (original / wave - low) / (high - low)
    return (1 - smooth) * frequency / Decimal(rope.factor) + smooth * frequency


def _yarn(plain: list[Decimal], rope: Rope) -> list[Decimal]:
    """Blend stretched and plain frequencies along a ramp between two numbers of turns."""
    base, width = Decimal(rope.theta), rope.width

    def edge(turns: float, rounding: str) -> Decimal:
        waves = Decimal(rope.longest) / (Decimal(turns) * 2 * _PI)
        at = width * waves.ln() / (2 * base.ln())
        return at.to_integral_value(rounding) if rope.truncate else at

    low = max(edge(rope.fast, ROUND_FLOOR), Decimal(0))
    high = min(edge(rope.slow, ROUND_CEILING), Decimal(width - 1))
    span = high - low if high != low else Decimal("0.001")
    ramp = [min(max((j - low) / span, Decimal(0)), Decimal(1)) for j in range(len(plain))]
    factor = Decimal(rope.factor)
    return [f / factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]


def rotary_tables(
    rope: Rope, start: int, stop: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cosine and sine [stop - start, width / 2] of the positions, in float64."""
    check_rope(rope, stop)
    frequencies = np.array(rotary_frequencies(rope, _counted(rope, stop)))
    angles = np.arange(start, stop, dtype=np.float64)[:, None] * frequencies  # [T, width/2]
    cos, sin = rotary_kernel.cos(angles), rotary_kernel.sin(angles)
    if rope.amplitude != 1.0:
        cos, sin = cos * rope.amplitude, sin * rope.amplitude
    return cos, sin


@cache
def _log_bucket(distance: int, exact: int, count: int, longest: int) -> int:
    """Return ``exact + floor(log(distance / exact) / log(longest / exact) * (count - exact))``."""
    with localcontext() as context:
        context.prec = 40
        share = (Decimal(distance) / exact).ln() / (Decimal(longest) / exact).ln()
        at = share * (count - exact) + Decimal("1e-30")  # a whole number stays whole
        return min(exact + int(at), count - 1)


def relative_buckets(
    arch: Arch, queries: NDArray[np.int64], keys: NDArray[np.int64], *, causal: bool
) -> NDArray[np.int64]:
    """Return the bucket [T, S] of each distance between query and key positions.

    Half of the buckets are for keys to the right, unless none is seen. The nearer half of each
    side holds one distance a bucket, the others grow in equal ratios up to `bucket_distance`.

    Source
    ------
    T5, arXiv 1910.10683 and its Mesh TensorFlow code.
    """
    count, longest = arch.buckets, arch.bucket_distance
    right = keys[None, :] - queries[:, None]  # [T, S]
    base = np.zeros_like(right)
    if causal:
        distance = np.maximum(-right, 0)
    else:
        count //= 2
        base += count * (right > 0)
        distance = np.abs(right)
    exact = count // 2
    table = [
        d if d < exact else _log_bucket(min(d, longest), exact, count, longest)
        for d in range(int(distance.max(initial=0)) + 1)
    ]
    buckets: NDArray[np.int64] = base + np.array(table, np.int64)[distance]
    return buckets
