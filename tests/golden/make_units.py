"""Write units.npz: small vectors of every unit and operand class, by the oracle of the tests.

    python tests/golden/make_units.py [FILE]

Results are those of tests/oracle_mac.py, which computes with Python's integers and imports nothing
of numsim; NumPy only draws the operands and writes the file. The layout is in README.md.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import oracle_mac as om  # noqa: E402

NAMES = ("A", "B", "C", "D", "SA", "SB")
INTEGERS = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4, "int16": 16, "int32": 32, "q1.6": 8}
KINDS = ("plain", "any", "edge")
# "holes": block scales of any size, and runs whose products are all zero
TINY = (*KINDS, "tiny")  # products and accumulators about the least normal float32
E4M3, E5M2, FP4 = "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"


@dataclass(frozen=True)
class Group:
    """Products of one pair of formats; ``dot(a, b, c)``, with scales ``dot(a, b, sa, sb, c)``."""

    target: str
    a: str
    b: str
    out: str
    dot: object
    k: int
    changes: tuple = ()
    nan_bits: bool = True
    scale: str = ""
    block: int = 0
    kinds: tuple = KINDS


# ------------------------------------------------------------------------------------------ groups
def float_groups():
    wide = ("wgmma", "tcgen05", "hopper", "blackwell")
    for case in om.CASES:
        k = 70 if "float8" in case.a and any(w in case.target for w in wide) else 35
        k = 21 if om.FORMATS[case.a].fraction_bits > 7 else k
        k = 70 if case.target == "x86.tdpbf16ps" else k
        kinds = TINY if om.FORMATS[case.a].exponent_bits == 8 and case.out == "float32" else KINDS
        yield Group(
            case.target, case.a, case.b, case.out, case.dot, k, case.changes, case.nan_bits,
            kinds=kinds,
        )  # fmt: skip
    for align, mode in (("floor", "rtz"), ("truncate", "rne"), ("floor", "rne")):
        # no vector kernel covers these
        unit = om.block(8, 24, align=align, mode=mode, floor=-132)
        changes = (("align", align), ("rounding", mode))
        yield Group("nvidia.ampere.mma", *om.BRAIN, "float32", unit, 19, changes, kinds=TINY)
    six = ("float6_e2m3fn", "float6_e3m2fn")
    for chip in ("blackwell.tcgen05", "rtx_blackwell.mma"):
        for a, b in ((six[0], six[1]), (E4M3, FP4), (six[1], E5M2), (FP4, FP4)):
            for out in ("float32", "float16"):
                low = om.least(f"nvidia.{chip}", out)
                unit = om.block(32, 25, f16=out == "float16", floor=low)
                yield Group(f"nvidia.{chip}", a, b, out, unit, 70)
    rtx = "nvidia.rtx_blackwell.mma"
    yield Group(rtx, *om.TF32, "float32", om.block(8, 25, floor=-133), 19, kinds=TINY)
    for a, b in om.FP8[:2]:
        yield Group("nvidia.hopper.mma", a, b, "float32", om.products_then_c, 70)
    for n, pair in ((4, om.HALF), (2, om.BRAIN)):

        def tree(a, b, c, n=n):
            return om.pair_tree(a, b, c, group=n)

        yield Group("amd.cdna1.mfma", *pair, "float32", tree, 19, (("order", "tree"),), False)
    for name in ("ideal.mac", "ideal.fp32"):
        yield Group(name, E4M3, FP4, "float32", om.fma_chain, 21, nan_bits=False)
    for mode in ("rne", "rna", "rtz", "rup", "rdn", "rto"):

        def chain(a, b, c, mode=mode):
            return om.fma_chain(a, b, c, f=om.F16, mode=mode)

        changes = (("acc_format", "float16"), ("rounding", mode))
        yield Group("ideal.mac", *om.HALF, "float16", chain, 17, changes, nan_bits=False)


def scaled_groups():
    for chip in ("blackwell.tcgen05", "rtx_blackwell.mma"):
        e8m0 = {"scale": "float8_e8m0fnu", "kinds": ("plain", "any")}
        for a, b in ((E4M3, E5M2), ("float6_e2m3fn", E4M3), (FP4, "float6_e3m2fn"), (FP4, FP4)):
            changes = (("kind", "mxf8f6f4"),) if a == b else ()
            yield Group(
                f"nvidia.{chip}", a, b, "float32", om.scaled_k32, 96, changes, block=32, **e8m0
            )
        for scale, block in (("float8_e8m0fnu", 32), ("float8_e8m0fnu", 16), (E4M3, 16)):

            def dot(a, b, sa, sb, c, scale=scale, block=block):
                return om.scaled_k64(a, b, sa, sb, c, block=block, scale=scale)

            kinds = ("plain", "any", "holes")
            yield Group(
                f"nvidia.{chip}", FP4, FP4, "float32", dot, 128, scale=scale, block=block,
                kinds=kinds,
            )  # fmt: skip
    ace = {"scale": "float8_e8m0fnu", "block": 32, "nan_bits": False}
    for a, b in om.FP8:
        yield Group("x86.top4mxbf8ps", a, b, "float32", om.top4mx, 96, **ace)

    def fixed(a, b, sa, sb, c):
        a, b = ([(v < 0, abs(v), -6, 0) for v in values] for values in (a, b))
        return om.top4mx(a, b, sa, sb, c)

    yield Group("x86.top4mxbssps", "q1.6", "q1.6", "float32", fixed, 96, **ace)


def chained_groups():
    """Sums of several chains: restarts, split K, columns of systolic arrays."""
    plain = {"kinds": ("plain",)}
    hopper, ada = om.block(32, 13, keep=13), om.block(16, 13, keep=13)

    def restarted(unit, every):
        return lambda a, b, c: om.promoted(unit, a, b, c, every=every)

    def divided(unit, parts, order, every=None, width=None):
        how = {"parts": parts, "order": order, "every": every, "width": width}
        return lambda a, b, c: om.split(unit, a, b, c=c, **how)

    yield Group("nvidia.hopper.wgmma", E4M3, E5M2, "float32", restarted(hopper, 128), 300,
                (("promote_every", 128),), **plain)  # fmt: skip
    for every in (None, 128):
        more = () if every is None else (("promote_every", every),)
        changes = (("split_k", 3), ("split_order", "contiguous"), *more)
        unit = divided(hopper, 3, "contiguous", every)
        yield Group("nvidia.hopper.wgmma", E4M3, E4M3, "float32", unit, 700, changes, **plain)
        for order, parts in (("serial", 3), ("pairwise", 4), ("pairwise", 5)):
            changes = (("split_k", parts), ("split_order", order), *more)
            unit = divided(ada, parts, order, every)
            k = 64 * parts + 70 if every else 64 * parts - 10
            yield Group("nvidia.ada.mma", E5M2, E4M3, "float32", unit, k, changes, **plain)
    orders = [("contiguous", 3), ("contiguous", 5), ("serial", 5)]
    for order, parts in (*orders, *(("pairwise", parts) for parts in range(2, 9))):
        # sums of float32 products round at every addition, so that their order shows
        changes = (("split_k", parts), ("split_order", order), ("split_tile", 2))
        unit = divided(om.fma_chain, parts, order, width=2)
        k = 4 * parts + (3 if order == "contiguous" else -1)  # tiles that parts do not share evenly
        yield Group("ideal.fp32", *om.SINGLE, "float32", unit, k, changes, **plain)
    column = restarted(om.fma_chain, 128)
    yield Group("generic.systolic", E4M3, E4M3, "float32", column, 150, nan_bits=False, **plain)
    yield Group("tpu.mxu_bf16", *om.BRAIN, "float32", column, 150, nan_bits=False, **plain)


def integer_groups():
    def sums(**how):
        return lambda a, b, c: om.int_dot(a, b, c, **how)

    for name, (a, b, dot) in om.INTEGER.items():
        yield Group(name, a, b, "int32", dot, 15)  # a pair and a group stay short
    wrap = sums()
    for unit in ("turing.mma", "ampere.mma", "ada.mma", "hopper.wgmma", "hopper.mma",
                 "blackwell.tcgen05", "blackwell.mma", "rtx_blackwell.mma"):  # fmt: skip
        for a, b in (("int8", "int8"), ("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8")):
            yield Group(f"nvidia.{unit}", a, b, "int32", wrap, 35)
        if unit in ("turing.mma", "ampere.mma", "ada.mma"):
            for a, b in (("int4", "int4"), ("uint4", "int4")):
                yield Group(f"nvidia.{unit}", a, b, "int32", wrap, 35)
    for a, b in (("int8", "int8"), ("int8", "uint8"), ("uint8", "uint8")):
        yield Group("x86.top4bssd", a, b, "int32", wrap, 15)
    for chip in (1, 2, 3):
        yield Group(f"amd.cdna{chip}.mfma", "int8", "int8", "int32", wrap, 19)
    yield Group("generic.systolic", "int8", "int8", "int32", wrap, 150, kinds=("plain",))
    for bits, overflow, group in ((12, "wrap", 1), (12, "saturate", 1), (16, "saturate", 4)):
        changes = (("acc_bits", bits), ("overflow", overflow), ("group", group))
        unit = sums(bits=bits, overflow=overflow, group=group)
        yield Group("ideal.int", "int8", "int8", "int32", unit, 14, changes, kinds=("plain", "any"))

    def exact(a, b, c):
        values = [[(v < 0, abs(v), 0, 0) for v in operand] for operand in (a, b)]
        return om.exact(*values, c)

    for a, b in (("int8", "uint8"), ("int32", "int8")):
        yield Group("ideal.exact", a, b, "float32", exact, 14, nan_bits=False)


def groups():
    for make in (float_groups, scaled_groups, chained_groups, integer_groups):
        yield from make()


# ------------------------------------------------------------------------------------------ inputs
def fields(f, rng, shape, low, high):
    """Codes whose exponent fields lie in [low, high]."""
    field, fraction = (
        rng.integers(low, high + 1, shape),
        rng.integers(0, 1 << f.fraction_bits, shape),
    )
    return (field << f.fraction_bits) | fraction | rng.integers(0, 2, shape) * f.sign_bit


def specials(f):
    """Codes that are no numbers, and the largest finite magnitude code."""
    if f.kind == "ieee":
        return [f.infinity, f.infinity | f.sign_bit, f.infinity | 1], f.infinity - 1
    if f.kind == "fnuz":
        return [f.sign_bit], f.sign_bit - 1
    return [f.sign_bit - 1] * (f.kind == "fn"), f.sign_bit - 1 - (f.kind == "fn")


def float_codes(name, rng, shape, kind, *, special=False):
    f = om.FORMATS[name]
    bad, top = specials(f)
    last = top >> f.fraction_bits
    middle = min(f.bias, last)
    if kind == "tiny":
        codes = fields(f, rng, shape, 54, 63)  # products below 2**-126
    elif kind == "any":
        low, high = (60, 190) if f.exponent_bits == 8 else (0, last)
        codes = fields(f, rng, shape, low, high)
    else:
        codes = fields(f, rng, shape, max(middle - 3, 0), min(middle + 2, last))
    if kind == "edge":
        one = 1 << f.fraction_bits
        corners = [0, f.sign_bit, 1, one - 1, one, one + 1, top, top | f.sign_bit]
        codes = np.where(rng.random(shape) < 0.4, rng.choice(corners, shape), codes)
    magnitude = codes & (f.sign_bit - 1)
    codes = np.where(magnitude > top, (codes & f.sign_bit) | (magnitude & top >> 1), codes)
    codes = np.where(np.isin(codes, bad), 0, codes)
    if special and bad:
        codes[0, rng.integers(0, shape[1])] = rng.choice(bad)
    return codes


def integer_codes(name, rng, shape, kind):
    bits, low = INTEGERS[name], 0 if name.startswith("u") else -(1 << (INTEGERS[name] - 1))
    high = low + (1 << bits) - 1
    if kind == "edge":
        return rng.choice([low, high, high - 1, 0], shape)
    return rng.integers(low, high + 1, shape)


def accumulators(g, rng, kind):
    if g.out == "int32":
        changes = dict(g.changes)
        top = (1 << (changes.get("acc_bits", 32) - 1)) - 1
        if kind == "plain":
            return np.zeros((2, 2), np.int64)
        edges = [top, -top - 1, top - 9, 1 - top]
        return rng.choice(edges, (2, 2)) if kind == "edge" else rng.integers(-top, top, (2, 2))
    f = om.FORMATS[g.out]
    if kind == "plain":
        return fields(f, rng, (2, 2), f.bias - 6, f.bias + 8)
    if kind == "tiny":
        return fields(f, rng, (2, 2), 0, 3)
    if kind == "any":
        return float_codes(g.out, rng, (2, 2), "any")
    one = f.bias << f.fraction_bits
    edges = [0, f.sign_bit, 1, f.infinity - 1, one, one | f.sign_bit, f.infinity]
    return rng.choice(edges, (2, 2))


def case(g, rng, kind):
    """Arrays of one case: A [2, K], B [K, 2], C, D [2, 2], scale codes by row and column."""
    shapes = ((2, g.k), (2, g.k))
    draws, read = [], []
    for name, shape, special in zip((g.a, g.b), shapes, (kind == "edge", False), strict=True):
        if name in INTEGERS:
            draws.append(integer_codes(name, rng, shape, kind))
            read.append([[int(v) for v in row] for row in draws[-1]])
        else:
            draws.append(float_codes(name, rng, shape, kind, special=special))
            read.append([[om.FORMATS[name].read(v) for v in row] for row in draws[-1]])
    c, d = accumulators(g, rng, kind), np.empty((2, 2), np.int64)
    scales = np.empty((2, 2, 0), np.int64)
    if g.block:
        low, high = (1, 127) if g.scale == E4M3 else (110, 144)
        scales = rng.integers(low, high, (2, 2, g.k // g.block))
        if kind == "any":
            scales[0, 0, -1] = 0x7F if g.scale == E4M3 else 0xFF
        if kind == "holes":
            low, high = (0, 126) if g.scale == E4M3 else (0, 254)
            scales = rng.integers(low, high, (2, 2, g.k // g.block))
            for k in range(0, g.k, 16):
                left, odd = rng.random() < 0.4, np.arange(k, min(k + 16, g.k)) % 2
                for j, lines in enumerate(draws):
                    hidden = (odd == j) if left else np.zeros(len(odd), bool)
                    lines[:, k : k + 16][:, hidden] = rng.choice([0, 8], (2, int(hidden.sum())))
            read = [[[om.FORMATS[n].read(v) for v in row] for row in lines]
                    for n, lines in zip((g.a, g.b), draws, strict=True)]  # fmt: skip
    for i, j in np.ndindex(2, 2):
        given = (scales[0, i].tolist(), scales[1, j].tolist()) if g.block else ()
        d[i, j] = g.dot(read[0][i], read[1][j], *given, int(c[i, j]))
    return draws[0], draws[1].T, c, d, scales[0], scales[1].T


def build():
    parts, meta = {name: [] for name in NAMES}, []
    for g in groups():
        text = f"{g.target} {g.a} {g.b} {g.out} {sorted(g.changes)} {g.scale} {g.block}"
        rng = np.random.default_rng(list(text.encode()))
        for kind in g.kinds:
            for name, array in zip(NAMES, case(g, rng, kind), strict=True):
                parts[name].append(array.reshape(-1))
        meta.append({
            "target": g.target, "changes": dict(g.changes), "a": g.a, "b": g.b, "out": g.out,
            "k": g.k, "cases": len(g.kinds), "nan_bits": g.nan_bits, "scale": g.scale,
            "block": g.block,
        })  # fmt: skip
    words = {name: np.concatenate(found).astype(np.int64) for name, found in parts.items()}
    return {name: (array & 0xFFFFFFFF).astype(np.uint32) for name, array in words.items()}, meta


if __name__ == "__main__":
    arrays, groups_made = build()
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "units.npz"
    np.savez_compressed(file, meta=np.array(json.dumps(groups_made)), **arrays)
    sys.stdout.write(f"{file}: {len(groups_made)} groups, {file.stat().st_size:,} bytes\n")
