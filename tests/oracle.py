"""Conversion by definition, in Python integers and fractions: the second witness of the tests.

Nothing here imports numsim or NumPy, and nothing is fast. A format is a rule that gives the value
of code ``n``; encoding finds the two neighbouring values by bisection, chooses one by rounding
mode, and only then asks whether the result is in range.

A value is a ``Fraction`` or one of the strings ``nan +inf -inf -0``.
"""

from __future__ import annotations

import bisect
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property

ROUNDINGS = ("rne", "rna", "rtz", "rup", "rdn", "rto")
POLICIES = ("saturate", "special", "saturate_finite")

# ml_dtypes 0.6 rounds all between 2**-127 and 2**-126 up to code 1 of E8M0, which is not nearest
# below 1.5 * 2**-127 (31 bfloat16 inputs). Acceptance compares with it; () makes it nearest.
E8M0_LOWEST_BINADE_UP = POLICIES


def power_of_two(exponent):
    return Fraction(2) ** exponent


@dataclass(frozen=True)
class Float:
    """A binary floating-point format.

    ``top`` is the code of the largest finite positive value, ``inf`` that of +Inf. In a signed
    format the code of -x is that of x plus ``2**(bits - 1)``.
    """

    name: str
    bits: int
    precision: int
    bias: int
    top: int
    signed: bool = True
    inf: int | None = None
    negative_zero: bool = True
    nans: frozenset = frozenset()  # codes of NaN
    ieee: bool = False  # every magnitude code above that of Inf is NaN too
    zero: bool = True  # E8M0 has neither zero nor subnormals
    p3109: bool = False  # out of range as the report's 4.7.5 has it

    @property
    def sign_bit(self):
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def has_inf(self):
        return self.inf is not None

    @property
    def has_nan(self):
        return self.ieee or bool(self.nans)

    def is_nan(self, code):
        return code in self.nans or (self.ieee and code & ~self.sign_bit > self.inf)

    @property
    def has_subnormals(self):
        return self.zero and self.precision > 1

    def magnitude(self, n):
        """Value of code ``n`` >= 0 in a format whose exponent field has no upper end."""
        fraction_bits = self.precision - 1
        exponent, fraction = n >> fraction_bits, n & ((1 << fraction_bits) - 1)
        if exponent == 0 and self.zero:
            return fraction * power_of_two(1 - self.bias - fraction_bits)
        return (fraction + (1 << fraction_bits)) * power_of_two(
            exponent - self.bias - fraction_bits
        )


@dataclass(frozen=True)
class Fixed:
    """A two's-complement integer of ``bits`` bits counting units of ``2**-fraction``."""

    name: str
    bits: int
    fraction: int
    signed: bool

    @property
    def lowest(self):
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self):
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def magnitude(self, n):
        return Fraction(n, 1 << self.fraction)


@dataclass(frozen=True)
class Table:
    """A format given by its list of values."""

    name: str
    bits: int
    values: tuple
    beyond: Fraction | None = None  # where Inf stands on the number line

    @cached_property
    def nans(self):
        return [c for c in range(1 << self.bits) if self.values[c] == "nan"]


def _ieee(name, exponent_bits, fraction_bits):
    """Top exponent field reserved: fraction zero is Inf, anything else NaN."""
    inf = ((1 << exponent_bits) - 1) << fraction_bits
    return Float(
        name,
        1 + exponent_bits + fraction_bits,
        fraction_bits + 1,
        2 ** (exponent_bits - 1) - 1,
        top=inf - 1,
        inf=inf,
        ieee=True,
    )


def _fnuz(name, precision, bias):
    """One zero, no Inf; the code of -0 is the only NaN."""
    return Float(
        name,
        8,
        precision,
        bias,
        top=0x7F,
        negative_zero=False,
        nans=frozenset({0x80}),
    )


NF4 = (  # bitsandbytes / QLoRA, values of the published float32 table
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

NAMED = {
    f.name: f
    for f in (
        _ieee("float32", 8, 23),
        _ieee("float16", 5, 10),
        _ieee("bfloat16", 8, 7),
        _ieee("tfloat32", 8, 10),  # 19 bits
        _ieee("float8_e5m2", 5, 2),
        _ieee("float8_e4m3", 4, 3),
        _ieee("float8_e3m4", 3, 4),
        # OCP OFP8: S.1111.111 is NaN, S.1111.110 = 448 is the largest
        Float("float8_e4m3fn", 8, 4, 7, top=0x7E, nans=frozenset({0x7F, 0xFF})),
        _fnuz("float8_e4m3fnuz", 4, 8),
        _fnuz("float8_e4m3b11fnuz", 4, 11),
        _fnuz("float8_e5m2fnuz", 3, 16),
        # OCP MX element formats: every code finite
        Float("float6_e2m3fn", 6, 4, 1, top=0x1F),
        Float("float6_e3m2fn", 6, 3, 3, top=0x1F),
        Float("float4_e2m1fn", 4, 2, 1, top=0x7),
        Float("float4_e1m2fn", 4, 3, 1, top=0x7),
        Float("float4_e3m0fn", 4, 1, 3, top=0x7),
        # block scales without a sign; the last code is NaN
        Float(
            "float8_ue4m3",
            7,
            4,
            7,
            top=0x7E,
            signed=False,
            negative_zero=False,
            nans=frozenset({0x7F}),
        ),
        Float(
            "float8_ue5m3",
            8,
            4,
            15,
            top=0xFE,
            signed=False,
            negative_zero=False,
            nans=frozenset({0xFF}),
        ),
        # OCP MX scale: 2**(code - 127), 0xFF is NaN, no zero, no sign
        Float(
            "float8_e8m0fnu",
            8,
            1,
            127,
            top=0xFE,
            signed=False,
            negative_zero=False,
            nans=frozenset({0xFF}),
            zero=False,
        ),
    )
}


def _p3109(name, k, p, signedness, domain):
    """IEEE P3109: code 0 is the only zero; the extended formats give their last codes to Inf."""
    if signedness == "s":
        nan, highest, bias = 1 << (k - 1), (1 << (k - 1)) - 1, 2 ** (k - p - 1)
    else:
        nan, highest, bias = (1 << k) - 1, (1 << k) - 2, 2 ** (k - p)
    extended = domain == "e"
    return Float(
        name,
        k,
        p,
        bias,
        top=highest - 1 if extended else highest,
        signed=signedness == "s",
        inf=highest if extended else None,
        negative_zero=False,
        nans=frozenset({nan}),
        p3109=True,
    )


def hifloat8_value(code):
    """Sign, exponent of a size that the code itself grows with, and what is left as fraction."""
    m = code & 0x7F
    if code == 0x80:
        return "nan"
    # least magnitude code, bits of fraction, bits of the exponent's size, least size
    for least, fraction_bits, size_bits, smallest in (
        (0x60, 1, 3, 8), (0x40, 2, 2, 4), (0x20, 3, 1, 2), (0x10, 3, 0, 1), (0x08, 3, -1, 0),
    ):  # fmt: skip
        if m >= least:
            rest = m - least
            size, fraction = rest >> fraction_bits, rest & ((1 << fraction_bits) - 1)
            downward = size_bits >= 0 and size >> size_bits
            size = smallest + (size & ((1 << max(size_bits, 0)) - 1))
            value = (1 + Fraction(fraction, 1 << fraction_bits)) * power_of_two(
                -size if downward else size
            )
            break
    else:
        value = power_of_two(m - 23) if m else Fraction(0)
    if m == 0x6F:
        return "-inf" if code >> 7 else "+inf"
    return -value if code >> 7 else value


@cache
def spec(name):
    """The format called ``name``."""
    if name in NAMED:
        return NAMED[name]
    if name == "hifloat8":
        every = tuple(map(hifloat8_value, range(256)))
        return Table(name, 8, every, beyond=Fraction(3 << 14))
    if name == "float8_ue6m2":
        scales = (Fraction(4 + c % 4, 4) * power_of_two(c // 4 - 48) for c in range(255))
        return Table(name, 8, (*scales, "nan"))
    if name == "nf4":
        return Table(name, 4, tuple(Fraction(v) for v in NF4))
    if m := re.fullmatch(r"(u?)int(\d+)", name):
        return Fixed(name, int(m[2]), 0, not m[1])
    if m := re.fullmatch(r"(u?)q(\d+)\.(\d+)", name):
        whole, fraction = int(m[2]), int(m[3])
        return Fixed(name, whole + fraction + (not m[1]), fraction, not m[1])
    if m := re.fullmatch(r"float_e(\d+)m(\d+)", name):
        return _ieee(name, int(m[1]), int(m[2]))
    if m := re.fullmatch(r"p3109_k(\d+)p(\d+)([su])([ef])", name):
        return _p3109(name, int(m[1]), int(m[2]), m[3], m[4])
    if m := re.fullmatch(r"posit(\d+)_es(\d+)", name):
        bits, es = int(m[1]), int(m[2])
        return Table(name, bits, _LazyPosit(bits, es))
    raise KeyError(name)


@cache
def posit_value(code, bits, es):
    """Value of a posit code: sign, run-length regime, ``es`` exponent bits, fraction."""
    if code == 0:
        return Fraction(0)
    if code == 1 << (bits - 1):
        return "nan"  # NaR
    negative = code >> (bits - 1)
    if negative:
        code = (1 << bits) - code
    body = format(code, f"0{bits}b")[1:]
    run = len(body) - len(body.lstrip(body[0]))
    regime = run - 1 if body[0] == "1" else -run
    tail = body[run + 1 :]
    exponent_bits, fraction_bits = tail[:es], tail[es:]
    exponent = int(exponent_bits.ljust(es, "0") or "0", 2)
    significand = 1 + Fraction(int(fraction_bits or "0", 2), 1 << len(fraction_bits))
    value = significand * power_of_two((regime << es) + exponent)
    return -value if negative else value


class _LazyPosit:
    def __init__(self, bits, es):
        self.bits, self.es = bits, es

    def __getitem__(self, code):
        return posit_value(code, self.bits, self.es)


def decode(name, code):
    """Value of one code. Integer and fixed-point codes are the signed integers themselves."""
    f = spec(name)
    if isinstance(f, Table):
        return f.values[code]
    if isinstance(f, Fixed):
        assert f.lowest <= code <= f.highest
        return Fraction(code, 1 << f.fraction)
    assert 0 <= code < 1 << f.bits
    if f.is_nan(code):
        return "nan"
    negative, n = bool(code & f.sign_bit), code & ~f.sign_bit
    if n == f.inf:
        return "-inf" if negative else "+inf"
    assert n <= f.top
    value = f.magnitude(n)
    if negative:
        return -value if value else "-0"
    return value


def codes(name):
    """Every code in the order of the bit patterns."""
    f = spec(name)
    if isinstance(f, Fixed) and f.signed:
        half = 1 << (f.bits - 1)
        return [n - 2 * half if n >= half else n for n in range(2 * half)]
    return list(range(1 << f.bits))


def nan_code(name, negative=False):
    """One code of NaN, with the sign where the format has a NaN of each sign."""
    f = spec(name)
    if isinstance(f, Float) and f.has_nan:
        base = f.inf + 1 if f.ieee else min(f.nans)
        return base | f.sign_bit if negative and f.is_nan(base | f.sign_bit) else base
    raise ValueError(f"{name} has no NaN")


@cache
def extremes(name):
    """Codes of zero and of the largest finite value."""
    every = codes(name)
    finite = [v if isinstance(v := decode(name, c), Fraction) else Fraction(-1) for c in every]
    return every[finite.index(0)], every[finite.index(max(finite))]


def encode_nan(name, negative, fraction, policy=None):
    """Code of a NaN input with the ``fraction`` of a 52-bit field.

    None: quiet, sign kept. canonical: one positive NaN, all ones where there are several. payload:
    upper fraction bits kept, the topmost set. max, zero: for formats without NaN.
    """
    f = spec(name)
    if policy in ("zero", "max"):
        return extremes(name)[policy == "max"]
    if isinstance(f, Table):
        return f.nans[0]
    if not f.ieee:
        return nan_code(name, negative and policy != "canonical")
    ones = (1 << (f.precision - 1)) - 1
    if policy == "canonical":
        return f.inf | ones
    kept = fraction >> (52 - (f.precision - 1)) if policy == "payload" else 0
    return f.inf | (f.sign_bit if negative else 0) | kept | (1 << (f.precision - 2))


def neighbours(f, m):
    """``n`` and the position of ``m`` between the values of codes ``n`` and ``n + 1``, in [0, 1).

    ``m`` >= 0; below the smallest value of a format without zero the position is 0 in code 0.
    """
    if m < f.magnitude(0):
        return 0, Fraction(0)
    above = 1
    while f.magnitude(above) <= m:
        above *= 2
    below = above // 2
    while above - below > 1:
        middle = (above + below) // 2
        if f.magnitude(middle) <= m:
            below = middle
        else:
            above = middle
    low, high = f.magnitude(below), f.magnitude(above)
    return below, (m - low) / (high - low)


def _round_up_magnitude(f, n, position, negative, rounding):
    """Whether the code of larger magnitude is the one to take."""
    if position == 0:
        return False
    half = Fraction(1, 2)
    if rounding == "rne":
        # ml_dtypes: the lone significand of E8M0 is odd, so its ties go up
        odd = n % 2 == 1 if getattr(f, "zero", True) else True
        return position > half or (position == half and odd)
    return {
        "rna": position >= half,
        "rtz": False,
        "rup": not negative,
        "rdn": negative,
        "rto": n % 2 == 0,
    }[rounding]


def stochastic_up(position, bits, integer, variant):
    """Golden README: Fastest = truncate, Fast = half_offset, Stochastic = rne_first."""
    assert 0 <= integer < 1 << bits
    if variant == "truncate":
        return math.floor(position * 2**bits) + integer >= 2**bits
    if variant == "half_offset":
        return math.floor(position * 2 ** (bits + 1)) + 2 * integer + 1 >= 2 ** (bits + 1)
    if variant == "rne_first":
        return round(position * 2**bits) + integer >= 2**bits  # Fraction rounds half to even
    raise ValueError(variant)


def philox(low, high, key, rounds=7):
    """Philox-2x32: the two words of a block (Salmon, Moraes, Dror, Shaw, SC 2011)."""
    for _ in range(rounds):
        product = 0xD256D193 * low
        low, high = (product >> 32) ^ key ^ high, product & 0xFFFFFFFF
        key = (key + 0x9E3779B9) & 0xFFFFFFFF
    return low, high


@cache
def sorted_table(name):
    """Finite values of a table with their codes, lowest first."""
    pairs = [(v, c) for c in codes(name) if isinstance(v := decode(name, c), Fraction)]
    return tuple(sorted(pairs))


def _encode_table(name, x, rounding, overflow, bits, integer, variant):
    """Nearest value, ties to the even code; finite numbers beyond the ends take the end."""
    pairs = sorted_table(name)
    (lowest, first), (highest, last) = pairs[0], pairs[-1]
    beyond = spec(name).beyond
    if x in ("+inf", "-inf"):
        if overflow != "saturate" and beyond is not None:
            return spec(name).values.index(x)
        if overflow != "saturate" and len(pairs) < 1 << spec(name).bits:
            return encode_nan(name, False, 0)
        return first if x == "-inf" else last
    x = Fraction(0) if x == "-0" else x
    if overflow == "special" and beyond is not None:
        ends = [spec(name).values.index(inf) for inf in ("-inf", "+inf")]
        stops = bits is None and (
            rounding in ("rtz", "rto") or rounding == ("rup" if x < 0 else "rdn")
        )
        if abs(x) >= beyond:
            return (first if x < 0 else last) if stops else ends[x > 0]
        pairs = ((-beyond, ends[0]), *pairs, (beyond, ends[1]))
        lowest, highest = -beyond, beyond
    if x <= lowest or x >= highest:
        return first if x <= lowest else last
    at = bisect.bisect_left(pairs, x, key=lambda pair: pair[0])
    high, high_code = pairs[at]
    if high == x:
        return high_code
    low, low_code = pairs[at - 1]
    position, half = (x - low) / (high - low), Fraction(1, 2)
    if bits is not None:
        away = stochastic_up(position if x > 0 else 1 - position, bits, integer, variant)
        up = away == (x > 0)
    else:
        up = {
            "rne": position > half or (position == half and high_code % 2 == 0),
            "rna": position > half or (position == half and x > 0),
            "rtz": x < 0,
            "rup": True,
            "rdn": False,
            "rto": high_code % 2 == 1,
        }[rounding]
    return high_code if up else low_code


def encode(name, x, rounding="rne", overflow="saturate", *, bits=None, integer=None, variant=None):
    """Code of ``x``; with ``bits`` and ``integer``, rounding is stochastic by ``variant``."""
    f = spec(name)
    if x == "nan":
        return nan_code(name)
    if isinstance(f, Table):
        return _encode_table(name, x, rounding, overflow, bits, integer, variant)
    if x in ("+inf", "-inf"):
        return _infinity(f, x == "-inf", overflow)
    negative = x == "-0" or (x != "-0" and x < 0)
    m = Fraction(0) if x == "-0" else abs(x)
    n, position = neighbours(f, m)
    if bits is not None:
        n += stochastic_up(position, bits, integer, variant)
    elif name == "float8_e8m0fnu" and (n, rounding) == (0, "rne") and position:
        n = 1 if overflow in E8M0_LOWEST_BINADE_UP else int(position >= Fraction(1, 2))
    else:
        n += _round_up_magnitude(f, n, position, negative, rounding)
    if isinstance(f, Fixed):
        signed = -n if negative else n
        if overflow == "wrap":
            return (signed - f.lowest) % (1 << f.bits) + f.lowest
        return max(f.lowest, min(f.highest, signed))
    if not f.zero and (negative or m == 0):
        return nan_code(name) if overflow == "special" else 0
    if negative and not f.signed:
        if n == 0 or (f.p3109 and bits is None and rounding in ("rtz", "rup")):
            return 0
        return nan_code(name) if overflow == "special" else 0
    if n > f.top:
        return _overflow(f, negative, rounding if bits is None else "sr", overflow)
    if n == 0:
        return f.sign_bit if negative and f.negative_zero else 0
    return n | (f.sign_bit if negative else 0)


def _largest(f, negative):
    if negative and not f.signed:
        return 0
    return f.top | (f.sign_bit if negative else 0)


def _special(f, negative):
    """Inf where the format has that Inf, else NaN, else the largest value.

    P3109: NaN only where the sign is wrong.
    """
    if f.p3109 and not f.has_inf and (f.signed or not negative):
        return _largest(f, negative)
    if f.has_inf and (f.signed or not negative):
        return f.inf | (f.sign_bit if negative else 0)
    return nan_code(f.name, negative) if f.has_nan else _largest(f, negative)


def _overflow(f, negative, rounding, overflow):
    if overflow in ("saturate", "saturate_finite"):
        return _largest(f, negative)
    stops = rounding in ("rtz", "rto") or rounding == ("rup" if negative else "rdn")
    if f.p3109 and rounding == "rto" and f.signed:
        stops = False
    if stops or not (f.has_inf or f.has_nan):
        return _largest(f, negative)
    return _special(f, negative)


def _infinity(f, negative, overflow):
    if isinstance(f, Fixed):
        if overflow == "wrap":
            raise ValueError("an infinity has no residue")
        return f.lowest if negative else f.highest
    if overflow == "saturate" or (f.p3109 and negative and not f.signed and overflow != "special"):
        return _largest(f, negative)
    return _special(f, negative)


def from_float(x):
    """A Python float as this module's value."""
    if math.isnan(x):
        return "nan"
    if math.isinf(x):
        return "+inf" if x > 0 else "-inf"
    if x == 0 and math.copysign(1, x) < 0:
        return "-0"
    return Fraction(x)


def to_float(value):
    """This module's value as a Python float (exact for every format of the table)."""
    if isinstance(value, str):
        return float(value)
    x = value.numerator / value.denominator
    assert Fraction(x) == value
    return x
