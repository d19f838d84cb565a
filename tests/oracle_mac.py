"""Matrix units by definition, in Python integers and fractions: the second witness of the tests.

Written from hardware.md alone; nothing here imports numsim or NumPy, and nothing is fast. Inputs
and outputs are bit patterns (plain integers). A finite value is the tuple ``(negative, s, q, e)``:
the number is ``s * 2**q`` with its sign, and ``e`` is the exponent the hardware reads from the
operand, which a subnormal keeps at the lowest exponent of its format. Everything else is one of the
strings ``nan +inf -inf``.

Every unit is a function of ``(a, b, c)``: two equally long lists of operands (``Format.read``)
and the accumulator as bits. ``CASES`` and ``INTEGER`` name them as numsim does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import product as product_of

import oracle

SPECIAL = ("nan", "+inf", "-inf")


# ---------------------------------------------------------------------------------------- formats
@dataclass(frozen=True)
class Format:
    """``kind``: ieee; fn (all ones is NaN, no Inf); fnuz (0x80 is NaN); finite; scale (E8M0)."""

    name: str
    exponent_bits: int
    fraction_bits: int
    bias: int
    kind: str = "ieee"

    @property
    def sign_bit(self):
        return 0 if self.kind == "scale" else 1 << (self.exponent_bits + self.fraction_bits)

    @property
    def lowest(self):
        return 1 - self.bias

    @property
    def infinity(self):
        assert self.kind == "ieee"
        return ((1 << self.exponent_bits) - 1) << self.fraction_bits

    def read(self, code):
        return _read(self, int(code))


@cache
def _read(f, code):
    negative, rest = bool(code & f.sign_bit), code & ~f.sign_bit
    if f.kind == "scale":
        return "nan" if code == 0xFF else (False, 1, code - f.bias, code - f.bias)
    if f.kind == "ieee" and rest >= f.infinity:
        return "nan" if rest > f.infinity else ("-inf" if negative else "+inf")
    if f.kind == "fn" and rest == f.sign_bit - 1:
        return "nan"
    if f.kind == "fnuz" and code == f.sign_bit:
        return "nan"
    field, s = rest >> f.fraction_bits, rest & ((1 << f.fraction_bits) - 1)
    if field:
        s |= 1 << f.fraction_bits
    e = max(field, 1) - f.bias
    return (negative, s, e - f.fraction_bits, e)


F32 = Format("float32", 8, 23, 127)
F16 = Format("float16", 5, 10, 15)
FORMATS = {
    f.name: f
    for f in (
        F32,
        F16,
        Format("bfloat16", 8, 7, 127),
        Format("tfloat32", 8, 10, 127),
        Format("float8_e5m2", 5, 2, 15),
        Format("float8_e4m3fn", 4, 3, 7, "fn"),
        Format("float8_e4m3", 4, 3, 7),
        Format("float8_e4m3fnuz", 4, 3, 8, "fnuz"),
        Format("float8_e5m2fnuz", 5, 2, 16, "fnuz"),
        Format("float4_e2m1fn", 2, 1, 1, "finite"),
        Format("float6_e2m3fn", 2, 3, 1, "finite"),
        Format("float6_e3m2fn", 3, 2, 3, "finite"),
        Format("float8_e8m0fnu", 8, 0, 127, "scale"),
    )
}


def round_bits(f, total, q, *, mode="rne", keep=None, zero_negative=False, inf=False):
    """Bits of ``total * 2**q`` in an IEEE format.

    ``keep`` < fraction bits leaves the low fraction bits zero (e8m13). ``inf``: overflow gives Inf
    in every mode; otherwise directed modes and rto stop at the largest finite value as in IEEE 754.
    """
    negative, s = total < 0, abs(total)
    if s == 0:
        return f.sign_bit if zero_negative else 0
    sign = f.sign_bit if negative else 0
    m = f.fraction_bits if keep is None else keep
    quantum = max(s.bit_length() - 1 + q, f.lowest) - m
    shift = quantum - q
    if shift <= 0:
        n, rest, half = s << -shift, 0, 1
    else:
        n, rest, half = s >> shift, s & ((1 << shift) - 1), 1 << (shift - 1)
    away = {
        "rne": rest > half or (rest == half and n & 1),
        "rna": rest >= half,
        "rtz": False,
        "rup": rest and not negative,
        "rdn": rest and negative,
        "rto": rest and not n & 1,
    }[mode]
    if shift <= 0:
        away = False
    code = (((quantum + m + f.bias - 1) << m) + n + bool(away)) << (f.fraction_bits - m)
    if code >= f.infinity:
        stops = mode in ("rtz", "rto") or mode == ("rup" if negative else "rdn")
        code = f.infinity - 1 if stops and not inf else f.infinity
    return sign | code


def signed(v):
    return -v[1] if v[0] else v[1]


def total_of(values):
    """Exact sum as ``(integer, exponent)``."""
    values = [v for v in values if v[1]]
    if not values:
        return 0, 0
    q = min(v[2] for v in values)
    return sum(signed(v) << (v[2] - q) for v in values), q


def product(x, y):
    if "nan" in (x, y):
        return "nan"
    if x in SPECIAL or y in SPECIAL:
        if 0 in (x[1], y[1]):
            return "nan"
        return "-inf" if is_negative(x) != is_negative(y) else "+inf"
    return (x[0] != y[0], x[1] * y[1], x[2] + y[2], x[3] + y[3])


def is_negative(v):
    return v == "-inf" if isinstance(v, str) else v[0]


def special_sum(values):
    """``nan``, an infinity, or None where every value is finite."""
    kinds = {v for v in values if isinstance(v, str)}
    if not kinds:
        return None
    if "nan" in kinds or len(kinds) == 2:
        return "nan"
    return kinds.pop()


def special_bits(f, kind, nan=None):
    if kind == "nan":
        return f.sign_bit - 1 if nan is None else nan
    return f.infinity | (f.sign_bit if kind == "-inf" else 0)


def groups(a, b, n, *, fill=False):
    """Runs of ``n`` operand pairs; ``fill``: the last one completed with +0."""
    for k in range(0, len(a), n):
        x, y = list(a[k : k + n]), list(b[k : k + n])
        if fill:
            zero = (False, 0, 0, -1000)
            x += [zero] * (n - len(x))
            y += [zero] * (n - len(y))
        yield x, y


# ------------------------------------------------------------------------------------------ ideal
def exact(a, b, c=0, *, out=F32):
    """One rounding of the exact sum, ``c`` included; a zero result is +0."""
    terms = [product(x, y) for x, y in zip(a, b, strict=True)] + [out.read(c)]
    if kind := special_sum(terms):
        return special_bits(out, kind)
    return round_bits(out, *total_of(terms))


def fma(x, y, acc, *, f=F32, mode="rne", inf=False):
    """IEEE 754 fusedMultiplyAdd; ``acc`` and the result are bits of ``f``."""
    return add_values(product(x, y), f.read(acc), f=f, mode=mode, inf=inf)


def add_values(x, y, *, f=F32, mode="rne", inf=False, nan=None):
    if kind := special_sum([x, y]):
        return special_bits(f, kind, nan)
    minus = x[0] if x[0] == y[0] else mode == "rdn"
    if not x[1] and not y[1]:
        return f.sign_bit if minus else 0
    return round_bits(f, *total_of([x, y]), mode=mode, inf=inf, zero_negative=mode == "rdn")


def add(x, y, *, f=F32, mode="rne", inf=False):
    """Sum of two bit patterns."""
    return add_values(f.read(x), f.read(y), f=f, mode=mode, inf=inf)


def multiply(x, y, *, f=F32, mode="rne", inf=False):
    p = product(x, y)
    if isinstance(p, str):
        return special_bits(f, p)
    return round_bits(f, -p[1] if p[0] else p[1], p[2], mode=mode, inf=inf, zero_negative=p[0])


def fma_chain(a, b, c=0, *, f=F32, mode="rne", product_format=None):
    """Sequential: c (or +0), then one fused step per k; ``product_format`` rounds it first."""
    for x, y in zip(a, b, strict=True):
        if product_format is None:
            c = fma(x, y, c, f=f, mode=mode)
        else:
            p = product_format.read(multiply(x, y, f=product_format, mode=mode))
            c = add_values(p, f.read(c), f=f, mode=mode)
    return c


def small_chain(a, b, c, acc_format, *, rounding="rne", overflow="special", product_format=None):
    """As `fma_chain` on values of oracle.py, in any format that oracle.py encodes.

    ``a``, ``b``, ``c`` are values; so is the result. Products are exact unless rounded.
    """

    def number(v):
        return Fraction(0) if v == "-0" else v

    def minus(v):
        return v in ("-0", "-inf") or (not isinstance(v, str) and v < 0)

    def stored(name, v):
        return oracle.decode(name, oracle.encode(name, v, rounding, overflow))

    for x, y in zip(a, b, strict=True):
        if "nan" in (x, y, c):
            return "nan"
        infinite = ("+inf", "-inf")
        if x in infinite or y in infinite:
            if 0 in (number(x), number(y)):
                return "nan"
            p = "-inf" if minus(x) != minus(y) else "+inf"
        else:
            p = number(x) * number(y)
            if p == 0 and minus(x) != minus(y):
                p = "-0"
        if product_format:
            p = stored(product_format, p)
            if p == "nan":
                return "nan"
        if p in infinite or c in infinite:
            if p in infinite and c in infinite and p != c:
                return "nan"
            c = stored(acc_format, p if p in infinite else c)
            continue
        s = number(p) + number(c)
        if s == 0 and number(p) == 0 == number(c):
            negative = (minus(p) and minus(c)) or (rounding == "rdn" and minus(p) != minus(c))
        else:
            negative = s == 0 and rounding == "rdn"
        c = stored(acc_format, "-0" if s == 0 and negative else s)
    return c


# --------------------------------------------------------------------------------------- integers
def wrap(x, bits=32):
    half = 1 << (bits - 1)
    return (x + half) % (2 * half) - half


def clamp(x, bits=32):
    half = 1 << (bits - 1)
    return max(-half, min(half - 1, x))


def int_dot(a, b, c=0, *, bits=32, overflow="wrap", group=1):
    """``a``, ``b``, ``c`` are the integers themselves; a step is ``group`` exact products."""
    for k in range(0, len(a), group):
        c += sum(x * y for x, y in zip(a[k : k + group], b[k : k + group], strict=True))
        c = wrap(c, bits) if overflow == "wrap" else clamp(c, bits)
    return c


def int_first_overflow(a, b, c=0, *, bits=32):
    """The k after whose product the accumulator no longer holds the sum, or None."""
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        c += x * y
        if c != wrap(c, bits):
            return k
    return None


def vpmaddubsw(a, b, c=0):
    """u8 x s8 pairs saturated to int16 (VPMADDUBSW), pairs of pairs (VPMADDWD), then VPADDD."""
    pairs = [
        clamp(sum(x * y for x, y in zip(a[k : k + 2], b[k : k + 2], strict=True)), 16)
        for k in range(0, len(a), 2)
    ]
    return wrap(c + sum(pairs))


# ----------------------------------------------------------------------------------------- NVIDIA
def truncate_to(v, quantum):
    """Signed integer count of ``2**quantum``, truncated toward zero."""
    shift = v[2] - quantum
    n = v[1] << shift if shift >= 0 else v[1] >> -shift
    return -n if v[0] else n


@dataclass(frozen=True)
class Block:
    """The align-and-truncate group of hardware.md 1.

    ``floor``: lower limit of the common exponent (`LEAST`).
    ``zero_products``: a product with a zero factor takes part in the common exponent.
    """

    group: int
    F: int
    keep: int | None = None  # fraction bits of an fp32 result
    out: Format = F32
    c_joins: bool = True
    floor: int | None = None
    zero_products: bool = False
    align: str = "truncate"
    mode: str | None = None  # rounding of the result

    def one(self, products, c):
        """One group: exact products and the bits of the accumulator give bits."""
        if not self.c_joins:  # an ordinary addition: a sum that overflowed meets an infinite c
            return add(replace(self, c_joins=True).one(products, 0), c, f=self.out)
        acc = self.out.read(c)
        terms = [*products, acc]
        if kind := special_sum(terms):
            return special_bits(self.out, kind)
        es = [t[3] for t in products if t[1] or self.zero_products] + [acc[3]] * bool(acc[1])
        if not es:
            return 0
        if self.floor is not None:
            es.append(self.floor)
        quantum = max(es) - self.F
        cut = floor_to if self.align == "floor" else truncate_to
        total = sum(cut(t, quantum) for t in terms)
        mode = self.mode or ("rtz" if self.out is F32 else "rne")
        d = round_bits(self.out, total, quantum, mode=mode, keep=self.keep, inf=True)
        return 0 if d == self.out.sign_bit else d  # a negative sum that rounds to zero is +0

    def __call__(self, a, b, c=0):
        for x, y in groups(a, b, self.group):
            c = self.one([product(u, v) for u, v in zip(x, y, strict=True)], c)
        return c


def block(group, F, *, keep=None, f16=False, **more):
    return Block(group, F, None if f16 else keep, F16 if f16 else F32, **more)


# the lower limit of the common exponent, for fp32 and fp16 results (hardware.md 1, item 8)
LEAST = {
    "volta": (-131, -19),
    **dict.fromkeys(("turing", "ampere", "ada"), (-132, -20)),
    **dict.fromkeys(("hopper", "blackwell", "rtx_blackwell"), (-133, -21)),
}


def least(target, out):
    """Lower limit of the common exponent of one of NVIDIA's units, by its name in numsim."""
    return LEAST[target.split(".")[1]][out == "float16"]


def half_steps(a, b, c=0, *, F=25):
    """FP8 mma.sync with fp16 output on Hopper and B200 (1.2), k 32 at a time."""
    step = Block(16, F, out=F16, floor=-21)
    for x, y in groups(a, b, 32):
        p = [product(u, v) for u, v in zip(x, y, strict=True)]
        t = step.one([v for k, v in enumerate(p) if k // 2 % 2 == 0], 0)
        t = step.one([v for k, v in enumerate(p) if k // 2 % 2 == 1], t)
        d = add(t, c, f=F16)
        c = 0x7FFF if F16.read(d) == "nan" else d
    return c


def products_then_c(a, b, c=0, *, group=32, F=25):
    """FP8 mma.sync with fp32 output on B200 (1.2)."""
    return Block(group, F, c_joins=False, floor=-133)(a, b, c)


# ------------------------------------------------------------------------------------ block scales
def scaled_k32(a, b, sa, sb, c=0):
    """mxf8f6f4: one E8M0 scale per 32; its exponents add to those of the products."""
    f = FORMATS["float8_e8m0fnu"]
    unit = Block(32, 25, floor=-133)
    for g, (x, y) in enumerate(groups(a, b, 32)):
        u, v = f.read(sa[g]), f.read(sb[g])
        if "nan" in (u, v):
            c = F32.sign_bit - 1
            continue
        e = u[3] + v[3]
        p = [product(s, t) for s, t in zip(x, y, strict=True)]
        p = [t if isinstance(t, str) else (t[0], t[1], t[2] + e, t[3] + e) for t in p]
        c = unit.one(p, c)
    return c


def scaled_k64(a, b, sa, sb, c=0, *, block, scale):
    """mxf4, mxf4nvf4: runs of 16 E2M1 products are exact; four partials and ``c`` aligned, F 35."""
    f = FORMATS[scale]
    for g in range(0, len(a), 64):
        partials, bad = [], False
        for k in range(g, min(g + 64, len(a)), 16):
            u, v = f.read(sa[k // block]), f.read(sb[k // block])
            if "nan" in (u, v):
                bad = True
                continue
            run = [product(x, y) for x, y in zip(a[k : k + 16], b[k : k + 16], strict=True)]
            total, q = total_of(run)
            # a run that cancels keeps the exponent of its scales; one of zeros has the least
            e = u[3] + v[3] if u[1] and v[1] and any(p[1] for p in run) else -139
            partials.append((total < 0, abs(total) * u[1] * v[1], q + u[2] + v[2], e))
        acc = F32.read(c)
        if bad or isinstance(acc, str):
            c = F32.sign_bit - 1 if bad or acc == "nan" else c
            continue
        terms = [*partials, acc]
        quantum = max([-139, *(t[3] for t in partials)] + [acc[3]] * bool(acc[1])) - 35
        total = sum(truncate_to(t, quantum) for t in terms)
        c = round_bits(F32, total, quantum, mode="rtz", inf=True)
        if c == F32.sign_bit:
            c = 0
    return c


# ------------------------------------------------------------------------------------------- CDNA
def flush(bits, f=F32):
    """Subnormal to zero of the same sign."""
    return bits if bits & f.infinity else bits & f.sign_bit


def flushed(v, f):
    return v if isinstance(v, str) or v[1] >> f.fraction_bits else (v[0], 0, v[2], v[3])


def pair_tree(a, b, c=0, *, group, daz=None):
    """CDNA2, with ``daz`` the input format; without, what an older MMA-Sim had for CDNA1."""
    done = (lambda x: x) if daz is None else flush
    if daz:
        a, b = [flushed(v, daz) for v in a], [flushed(v, daz) for v in b]
    for x, y in groups(a, b, group, fill=True):
        level = [done(multiply(u, v)) for u, v in zip(x, y, strict=True)]
        while len(level) > 1:
            level = [done(add(s, t)) for s, t in zip(level[::2], level[1::2], strict=True)]
        if c == F32.sign_bit or (daz and not c & F32.infinity):
            c = 0  # -0 becomes +0; on CDNA2 so does a subnormal
        c = done(add(c, level[0]))
    return c


def exact_groups(a, b, c=0, *, group):
    """CDNA1: exact sum of the group and ``c``, one RNE."""
    for x, y in groups(a, b, group):
        c = exact(x, y, c)
    return c


def floor_to(v, quantum):
    shift = v[2] - quantum
    n = -v[1] if v[0] else v[1]
    return n << shift if shift >= 0 else n >> -shift


def _aligned(products, F):
    """(i): sum of products truncated below their largest exponent, and that exponent."""
    es = [t[3] for t in products if t[1]]
    if not es:
        return None
    E = max(es)
    n = sum(truncate_to(t, E - F) for t in products)
    return (n < 0, abs(n), E - F, E)


def _join(p, acc, *, drop):
    """(ii): product sum floored to 32, c to 24 bits below the common exponent; (iii): one RNE."""
    if p is None:
        return round_bits(F32, signed(acc), acc[2])
    E = max(p[3], acc[3])  # a zero c has exponent -126
    if drop and acc[1] and acc[3] < E - 25:
        acc = (False, 0, 0, 0)
    n, q = floor_to(p, E - 32) + (floor_to(acc, E - 24) << 8), E - 32
    # (iii): normalised, not below -126, and floored to 31 fraction bits
    own = max(abs(n).bit_length() - 1 + q, -126) - 31
    negative = n < 0
    if own > q:
        n, q = n >> (own - q), own
    return round_bits(F32, n, q, zero_negative=negative)


def _limited(p):
    """A bf16 or xf32 product of 2**128 or more is Inf."""
    if isinstance(p, str) or p[1].bit_length() + p[2] <= 128:
        return p
    return "-inf" if p[0] else "+inf"


def cdna3(a, b, c=0, *, group):
    for x, y in groups(a, b, group):
        p = [product(u, v) for u, v in zip(x, y, strict=True)]
        acc = F32.read(c)
        if kind := special_sum([*(_limited(v) for v in p), acc]):
            c = special_bits(F32, kind)
            continue
        c = _join(_aligned(p, 24), acc, drop=False)
    return c


def cdna3_fp8(a, b, c=0):
    for x, y in groups(a, b, 16):
        p = [product(u, v) for u, v in zip(x, y, strict=True)]
        acc = F32.read(c)
        if kind := special_sum([*p, acc]):
            c = special_bits(F32, kind)
            continue
        halves = [h for h in (_aligned(p[0::2], 24), _aligned(p[1::2], 24)) if h]
        both = None
        if halves:
            E = max(h[3] for h in halves)
            n = sum(floor_to(h, E - 24) for h in halves)
            both = (n < 0, abs(n), E - 24, E)
        c = _join(both, acc, drop=True)
    return c


# -------------------------------------------------------------------------------- x86 and Arm bf16
BF16 = FORMATS["bfloat16"]


def fma_daz_ftz(x, y, acc):
    """SSE style: subnormal operands are zeros, a result tiny after rounding becomes zero."""
    x, y = flushed(x, BF16), flushed(y, BF16)
    return add_ftz(product(x, y), F32.read(flush(acc)))


def add_ftz(x, y):
    if special_sum([x, y]):
        return add_values(x, y)
    total, q = total_of([x, y])
    if total and abs(total).bit_length() - 1 + q < -126:
        # rounded with an unbounded exponent: is it still below 2**-126?
        wide = replace(F32, name="wide", exponent_bits=16, bias=32767)
        v = wide.read(round_bits(wide, total, q))
        if v[3] < -126:
            return F32.sign_bit if total < 0 else 0
    return add_values(x, y)


def vdpbf16ps(a, b, c=0):
    for x, y in groups(a, b, 2, fill=True):
        c = fma_daz_ftz(x[1], y[1], c)
        c = fma_daz_ftz(x[0], y[0], c)
    return c


def tdpbf16ps(a, b, c=0):
    """SDM: 16 pairs (64-byte rows) per instruction; even and odd chains from +0, then joined."""
    for x, y in groups(a, b, 32):
        if len(x) % 2:
            x, y = next(groups(x, y, len(x) + 1, fill=True))
        even = odd = 0
        for k in range(0, len(x), 2):
            even = fma_daz_ftz(x[k], y[k], even)
            odd = fma_daz_ftz(x[k + 1], y[k + 1], odd)
        both = add_ftz(F32.read(even), F32.read(odd))
        c = add_ftz(F32.read(flush(c)), F32.read(both))
    return c


def tdpfp16ps(a, b, c=0):
    """SDM: as `tdpbf16ps`, but float16 subnormals are kept; DAZ and FTZ are of float32."""
    for x, y in groups(a, b, 32):
        if len(x) % 2:
            x, y = next(groups(x, y, len(x) + 1, fill=True))
        even = odd = 0
        for k in range(0, len(x), 2):
            even = add_ftz(product(x[k], y[k]), F32.read(flush(even)))
            odd = add_ftz(product(x[k + 1], y[k + 1]), F32.read(flush(odd)))
        c = add_ftz(F32.read(flush(c)), F32.read(add_ftz(F32.read(even), F32.read(odd))))
    return c


# ------------------------------------------------------------------------------------- x86 ACE v1
def top2bf16ps(a, b, c=0):
    """Two products added with one rounding, then the accumulator; DAZ and FTZ throughout."""
    for x, y in groups(a, b, 2, fill=True):
        p = [product(flushed(u, BF16), flushed(v, BF16)) for u, v in zip(x, y, strict=True)]
        c = add_ftz(F32.read(flush(c)), F32.read(add_ftz(*p)))
    return c


def top4mx(a, b, sa, sb, c=0):
    """Four products exactly, times the scales, one rounding; then DAZ(C) + that, FTZ."""
    f = FORMATS["float8_e8m0fnu"]
    for k, (x, y) in zip(range(0, len(a), 4), groups(a, b, 4), strict=True):
        u, v = f.read(sa[k // 32]), f.read(sb[k // 32])
        p = [product(s, t) for s, t in zip(x, y, strict=True)]
        kind = "nan" if "nan" in (u, v) else special_sum(p)
        if kind:
            total = special_bits(F32, kind)
        else:
            n, q = total_of(p)
            total = flush(round_bits(F32, n, q + u[2] + v[2]))
        c = flush(add(flush(c), total))
    return c


def bfdot(a, b, c=0, *, ebf=0):
    """Arm BFDOT. EBF=0: every step to odd, flushed. EBF=1: a pair is one rounding, RNE, kept."""
    nan = 0x7FC00000

    def clean(bits):
        return nan if F32.read(bits) == "nan" else bits

    for x, y in groups(a, b, 2, fill=True):
        if ebf:
            p = [product(u, v) for u, v in zip(x, y, strict=True)]
            s = add_values(*p)
            c = clean(add(c, clean(s)))
        else:
            odd = {"mode": "rto", "inf": True}
            x, y = [flushed(v, BF16) for v in x], [flushed(v, BF16) for v in y]
            p = [flush(clean(multiply(u, v, **odd))) for u, v in zip(x, y, strict=True)]
            s = flush(clean(add(*p, **odd)))
            c = flush(clean(add(flush(c), s, **odd)))
    return c


def fdot_fp8(a, b, c=0, *, out=F32, lscale=0, osm=False, ways=(4, 2)):
    """Arm FP8: so many products into fp32 or fp16; scaled sum and accumulator rounded once."""
    nan = 0x7FC00000 if out is F32 else 0x7E00
    lscale = lscale % 128 if out is F32 else lscale % 16
    for x, y in groups(a, b, ways[out is F16], fill=True):
        p = [product(u, v) for u, v in zip(x, y, strict=True)]
        p = [v if isinstance(v, str) else (v[0], v[1], v[2] - lscale, v[3]) for v in p]
        acc = out.read(c)
        if kind := special_sum([*p, acc]):
            c = special_bits(out, kind, nan)
            continue
        negative = all(v[0] for v in [*p, acc]) and not any(v[1] for v in [*p, acc])
        c = round_bits(out, *total_of([*p, acc]), zero_negative=negative)
        if osm and c & (out.sign_bit - 1) == out.infinity:
            c -= 1  # the largest finite number
    return c


# ----------------------------------------------------------------------------- RISC-V and Gaudi
def jammed_to(v, quantum):
    """Signed count of ``2**quantum``; what is shifted out is ORed into the magnitude's last bit."""
    shift = v[2] - quantum
    n = v[1] << shift if shift >= 0 else v[1] >> -shift | bool(v[1] & ((1 << -shift) - 1))
    return -n if v[0] else n


def bulk_norm(a, b, c=0, *, group):
    """RISC-V bulk normalisation: sums of ``group`` products, rounded to odd at each step."""
    nan, odd = 0x7FC00000, {"mode": "rto", "inf": True}
    for x, y in groups(a, b, group):
        p = [product(u, v) for u, v in zip(x, y, strict=True)]
        total = 0
        if kind := special_sum(p):
            total = special_bits(F32, kind)
        elif some := [t for t in p if t[1]]:
            quantum = max(t[3] for t in some) - 23 - (group - 1).bit_length()
            total = round_bits(F32, sum(jammed_to(t, quantum) for t in some), quantum, **odd)
        c = add_values(F32.read(total), F32.read(c), nan=nan, **odd)
    return c


def shifted(v, n):
    """A value times ``2**n``, as another exponent bias makes it."""
    return v if isinstance(v, str) else (v[0], v[1], v[2] + n, v[3] + n)


def normalised(v, least=None):
    """The same value with the exponent of its leading bit, at least ``least``."""
    if isinstance(v, str) or not v[1]:
        return v
    e = v[1].bit_length() - 1 + v[2]
    return (*v[:3], e if least is None else max(e, least))


def gaudi3(a, b, c=0, *, fp8=True):
    """Groups of 8 and the accumulator, aligned to 24 bits, fp32 toward zero; E >= -132."""
    if fp8:
        a, b = ([normalised(v) for v in values] for values in (a, b))
    return Block(8, 24, floor=-132)(a, b, c)


def gaudi2(a, b, c=0, *, fp8=True):
    """Products aligned to their largest exponent and cut; the sum and DAZ(c) are rounded once."""
    group, bits = (16, 24) if fp8 else (8, 46)
    if fp8:
        a, b = ([normalised(v, -14) for v in values] for values in (a, b))
    else:
        a, b = ([flushed(v, BF16) for v in values] for values in (a, b))
    for x, y in groups(a, b, group, fill=True):
        p, acc = [product(u, v) for u, v in zip(x, y, strict=True)], F32.read(flush(c))
        if kind := special_sum([*p, acc]):
            c = special_bits(F32, kind)
            continue
        some = [t for t in p if t[1]]
        quantum = max((t[3] for t in some), default=0) - bits
        n = sum(truncate_to(t, quantum) for t in some)
        minus = acc[0] and not acc[1] and all(t[0] and not t[1] for t in p)
        c = flush(round_bits(F32, *total_of([(n < 0, abs(n), quantum, 0), acc]),
                             zero_negative=minus))  # fmt: skip
    return c


# -------------------------------------------------------------------------------------- GEMM level
def promoted(unit, a, b, c=0, *, every):
    """Chains of ``every`` products from +0; results added in k order, fp32 RNE."""
    total = None
    for x, y in groups(a, b, every):
        d = unit(x, y, 0)
        total = d if total is None else add(total, d)
    total = 0 if total is None else total
    return total if c == 0 else add(c, total)


def split(unit, a, b, *, parts, order, every=None, width=None, c=None):
    """Split-K (hardware.md 1.4). ``contiguous``: runs of 128-wide tiles; else 64-wide, dealt."""
    width = width or (128 if order == "contiguous" else 64)
    tiles = list(groups(a, b, width))
    if order == "contiguous":
        q = math.ceil(len(tiles) / parts)
        own = [tiles[i : i + q] for i in range(0, len(tiles), q)]
    else:
        own = [tiles[s::parts] for s in range(parts)]
    partials = []
    for part in own:
        x = [v for t in part for v in t[0]]
        y = [v for t in part for v in t[1]]
        partials.append(promoted(unit, x, y, every=every) if every else unit(x, y, 0))
    if order == "pairwise":
        partials = pairwise_slots(partials)
    partials = partials if c is None else [c, *partials]
    total = partials[0]
    for p in partials[1:]:
        total = add(total, p)
    return total


def pairwise_slots(p):
    """h = ceil(S/2); slot i = p_i + p_(i+h) where i + h < S - 1, else p_i; p_(S-1) comes first."""
    s = len(p)
    h = math.ceil(s / 2)
    slots = [add(p[i], p[i + h]) if i + h < s - 1 else p[i] for i in range(h) if i < s - 1]
    return [p[-1], *slots]


def scaled_integer(acc, scale_a, scale_b, bias=0):
    """fp32(fp32(acc) * 2**-bias * fp32(scale_a * scale_b)); scales and the result are bits."""
    n = abs(acc)
    x = F32.read(round_bits(F32, acc, 0)) if n else (False, 0, 0, 0)
    p = product(x, F32.read(multiply(F32.read(scale_a), F32.read(scale_b))))
    if isinstance(p, str):
        return special_bits(F32, p, 0x7FC00000)
    return round_bits(F32, signed(p), p[2] - bias, zero_negative=p[0])


def epilogue(acc, alpha, out, scale_result=None):
    """Bits of an fp32 accumulator and of fp32 factors give bits (or codes) of ``out``."""
    y = fma(F32.read(acc), F32.read(alpha), 0)
    if out == "float32":
        return y
    if out in ("float16", "bfloat16"):
        v = F32.read(y)
        f = FORMATS[out]
        if isinstance(v, str):
            return special_bits(f, v)
        return round_bits(f, signed(v), v[2], zero_negative=v[0])
    y = multiply(F32.read(y), F32.read(scale_result))
    v = F32.read(y)
    if v == "nan":
        return 0x7F
    if v in SPECIAL:
        return oracle.encode(out, v)
    x = signed(v) * Fraction(2) ** v[2]
    return oracle.encode(out, "-0" if x == 0 and v[0] else x)


# ---------------------------------------------------------------------------------- units by name
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
FP8 = [(x, y) for x in (E4M3, E5M2) for y in (E4M3, E5M2)]
FNUZ = [(f"{x}fnuz", f"{y}fnuz") for x in ("float8_e4m3", "float8_e5m2") for y in ("float8_e5m2",)]
FNUZ += [(f"float8_{x}fnuz", "float8_e4m3fnuz") for x in ("e4m3", "e5m2")]
HALF, BRAIN, TF32 = ("float16",) * 2, ("bfloat16",) * 2, ("tfloat32",) * 2
SINGLE = ("float32",) * 2
IEEE8 = "float8_e4m3"
GAUDI3 = [(x, y) for x in (IEEE8, E4M3, E5M2) for y in (IEEE8, E4M3, E5M2)]
GAUDI2 = [(IEEE8, IEEE8), (E5M2, E5M2)]
ARM_FP8 = {
    "arm.fdot_fp8": (4, 2), "arm.fmopa_fp8": (4, 2), "arm.fmlal_fp8": (1, 1),
    "arm.fmmla_fp8": (8, 4),
}  # fmt: skip
ARM_CHANGES = ({}, {"lscale": 9}, {"lscale": 3, "osm": True})
NO_CHANGE = ()


@dataclass(frozen=True)
class Case:
    """One operand pair of one unit; ``dot(a, b, c)`` as at the top of this module."""

    target: str
    a: str
    b: str
    out: str
    dot: object
    changes: tuple = NO_CHANGE  # of numsim.get_target
    nan_bits: bool = True

    def __str__(self):
        changed = "".join(f",{k}={v}" for k, v in self.changes)
        return f"{self.target}{changed}-{self.a}-{self.b}-{self.out}"


def _cases():
    def nvidia(target, pairs, group, F, *, keep=None, outs=("float32", "float16"), changes=()):
        for a, b in pairs:
            for out in outs:
                low = least(target, out)
                unit = block(group, F, keep=keep, f16=out == "float16", floor=low)
                yield Case(target, a, b, out, unit, changes)

    def fp32(target, pairs, unit, changes=()):
        for a, b in pairs:
            yield Case(target, a, b, "float32", unit, changes, nan_bits=False)

    one = ("float32",)
    yield from nvidia("nvidia.volta.mma", [HALF], 4, 23)
    yield from nvidia("nvidia.turing.mma", [HALF], 8, 24)
    for chip in ("ampere", "ada"):
        yield from nvidia(f"nvidia.{chip}.mma", [HALF], 8, 24)
        yield from nvidia(f"nvidia.{chip}.mma", [BRAIN], 8, 24, outs=one)
        yield from nvidia(f"nvidia.{chip}.mma", [TF32], 4, 24, outs=one)
    yield from nvidia("nvidia.ada.mma", FP8, 16, 13, keep=13)
    for unit in ("hopper.wgmma", "hopper.mma", "blackwell.tcgen05", "blackwell.mma"):
        yield from nvidia(f"nvidia.{unit}", [HALF], 16, 25)
        yield from nvidia(f"nvidia.{unit}", [BRAIN], 16, 25, outs=one)
        yield from nvidia(f"nvidia.{unit}", [TF32], 8, 25, outs=one)
    yield from nvidia("nvidia.hopper.wgmma", FP8, 32, 13, keep=13)
    yield from nvidia("nvidia.blackwell.tcgen05", FP8, 32, 25)
    for chip in ("hopper", "blackwell"):
        for a, b in FP8:
            yield Case(f"nvidia.{chip}.mma", a, b, "float16", half_steps)
    for a, b in FP8:
        yield Case("nvidia.blackwell.mma", a, b, "float32", products_then_c)
    # Turing's m8n8k4 is Volta's
    for out, low in (("float32", -131), ("float16", -19)):
        unit = block(4, 23, f16=out == "float16", floor=low)
        yield Case("nvidia.turing.mma", *HALF, out, unit, (("group", 4),))
    rtx = "nvidia.rtx_blackwell.mma"
    yield from nvidia(rtx, [HALF], 16, 25)
    yield from nvidia(rtx, [BRAIN], 16, 25, outs=one)
    yield from nvidia(rtx, FP8, 32, 25)
    yield from nvidia(rtx, FP8[:2], 16, 25, changes=(("group", 16),))

    for chip in (1, 2):
        for pair, n in ((HALF, 4), (BRAIN, 4), (BRAIN, 2)):
            daz = FORMATS[pair[0]] if chip == 2 else None

            def dot(a, b, c=0, n=n, daz=daz):
                if daz is None:
                    return exact_groups(a, b, c, group=n)
                return pair_tree(a, b, c, group=n, daz=daz)

            if (chip, pair, n) != (1, BRAIN, 4):  # MI100 has groups of two only
                changes = (("group", 2),) if n == 2 else ()
                yield from fp32(f"amd.cdna{chip}.mfma", [pair], dot, changes)
    for pairs, n, changes in (
        ([HALF, BRAIN], 8, ()),
        ([HALF, BRAIN], 4, (("group", 4),)),
        ([TF32], 4, ()),
    ):
        yield from fp32(
            "amd.cdna3.mfma", pairs, lambda a, b, c=0, n=n: cdna3(a, b, c, group=n), changes
        )
    yield from fp32("amd.cdna3.mfma", FNUZ, cdna3_fp8)
    for chip in (1, 2, 3):
        yield from fp32(f"amd.cdna{chip}.mfma", [SINGLE], fma_chain)

    yield from fp32("x86.vdpbf16ps", [BRAIN], vdpbf16ps)
    yield from fp32("x86.tdpbf16ps", [BRAIN], tdpbf16ps)
    yield from fp32("arm.bfdot", [BRAIN], bfdot)
    yield from fp32("x86.tdpfp16ps", [HALF], tdpfp16ps)
    yield from fp32("x86.top2bf16ps", [BRAIN], top2bf16ps)
    for name, ways in ARM_FP8.items():
        changes = ARM_CHANGES if name == "arm.fdot_fp8" else ARM_CHANGES[-1:]
        for (a, b), out, more in product_of(FP8, ("float32", "float16"), changes):

            def dot(x, y, c=0, out=FORMATS[out], ways=ways, more=more):
                return fdot_fp8(x, y, c, out=out, ways=ways, **more)

            yield Case(name, a, b, out, dot, tuple(more.items()))
    for name, pairs in (("riscv.zvfwdota16bf", [BRAIN]), ("riscv.zvfqwdota8f", FP8)):
        for (a, b), group in product_of(pairs, (16, 6, 64)):

            def dot(x, y, c=0, group=group):
                return bulk_norm(x, y, c, group=group)

            yield Case(name, a, b, "float32", dot, (("group", group),))
    for name, dot, pairs, biases in (
        ("intel.gaudi3.mme", gaudi3, GAUDI3, ((3, 15), (62, 0))),
        ("intel.gaudi2.mme", gaudi2, GAUDI2, ((3, 11),)),
    ):
        for a, b in pairs:
            yield Case(name, a, b, "float32", dot)
            for u, v in biases if a == b == IEEE8 else ():

                def biased(x, y, c=0, dot=dot, shift=(7 - u, 7 - v)):
                    pairs = zip((x, y), shift, strict=True)
                    x, y = ([shifted(t, n) for t in values] for values, n in pairs)
                    return dot(x, y, c)

                yield Case(name, a, b, "float32", biased, (("bias_a", u), ("bias_b", v)))

        def bf16(x, y, c=0, dot=dot):
            return dot(x, y, c, fp8=False)

        yield Case(name, *BRAIN, "float32", bf16)
    yield from fp32("ideal.fp32", [*FP8[:2], FP8[3], HALF, BRAIN, TF32, SINGLE], fma_chain)
    for a, b in [*FP8[:2], FP8[3], HALF, BRAIN, TF32, SINGLE, ("float4_e2m1fn", E4M3)]:
        for out in ("float32", "float16"):

            def once(x, y, c=0, f=FORMATS[out]):
                return exact(x, y, c, out=f)

            yield Case("ideal.exact", a, b, out, once, nan_bits=False)


CASES = tuple(_cases())

# integer units: operand types, products per step, what the accumulator does
INTEGER = {
    "x86.vpdpbusd": ("uint8", "int8", lambda a, b, c: int_dot(a, b, c, group=4)),
    "x86.vpdpbusds": (
        "uint8",
        "int8",
        lambda a, b, c: int_dot(a, b, c, group=4, overflow="saturate"),
    ),
    "x86.vpmaddubsw": ("uint8", "int8", vpmaddubsw),
    "x86.vpdpwssd": ("int16", "int16", lambda a, b, c: int_dot(a, b, c, group=2)),
    "x86.vpdpwssds": (
        "int16",
        "int16",
        lambda a, b, c: int_dot(a, b, c, group=2, overflow="saturate"),
    ),
    "x86.tdpbssd": ("int8", "int8", int_dot),
    "x86.top4bssd": ("uint8", "int8", int_dot),
    "arm.sdot": ("int8", "int8", int_dot),
    "arm.smmla": ("int8", "int8", int_dot),
    "tpu.mxu_int8": ("int8", "int8", int_dot),
    "ideal.int": ("int8", "int8", int_dot),
}
