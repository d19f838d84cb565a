"""Adders above a unit's own: a column, the accumulator that it ends in, and an outer sum."""

import tomllib
from dataclasses import replace

import numpy as np
import oracle_mac as om
import pytest

import numsim as ns
from numsim.targets.explain import explain_mma
from numsim.targets.levels import Level
from numsim.targets.trace import trace
from numsim.targets.types import Target

E8M13 = om.Format("e8m13", 8, 13, 127)
FORMATS = {"float32": om.F32, "float_e8m13": E8M13, "bfloat16": om.FORMATS["bfloat16"]}
ONE = om.F32.read(0x3F800000)
BRAIN = om.FORMATS["bfloat16"]
UNITS = {
    "nvidia.ampere.mma": om.block(8, 24, floor=-132),
    "ideal.fp32": om.fma_chain,
    "x86.vdpbf16ps": om.vdpbf16ps,
}


def wide(f, bits):
    """Bits of a small float as those of float32."""
    v = f.read(bits)
    if isinstance(v, str):
        return om.special_bits(om.F32, v)
    return om.round_bits(om.F32, om.signed(v), v[2], zero_negative=v[0])


def leveled(unit, a, b, levels):
    """Results of what is below, added in order from +0 in the format of the last level."""
    if not levels:
        return unit(a, b, 0)
    *inner, level = levels
    f, total = FORMATS[str(level.acc_format)], 0
    for x, y in om.groups(a, b, level.every):
        part = om.F32.read(leveled(unit, x, y, inner))
        total = om.fma(part, ONE, total, f=f, mode=level.rounding)
    return wide(f, total)


LEVELS = [
    (Level(4),),
    (Level(4, rounding="rtz"),),
    (Level(4, "float_e8m13", "rtz"), Level(16)),
    (Level(8, "bfloat16"), Level(16, "float_e8m13", "rup"), Level(64, rounding="rto")),
    (Level(3), Level(12, rounding="rdn")),
]


def operands(rng, m, k, n):
    spread = 2.0 ** rng.integers(-8, 9, k)
    a = ns.encode(rng.normal(size=(m, k)) * spread, "bfloat16")
    b = ns.encode(rng.normal(size=(k, n)), "bfloat16")
    return ns.QTensor.from_codes(a, "bfloat16"), ns.QTensor.from_codes(b, "bfloat16")


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("levels", LEVELS, ids=lambda x: "-".join(str(v.every) for v in x))
def test_levels_against_the_oracle(name, levels):
    unit = ns.get_target(name, levels=levels)
    rng = np.random.default_rng(len(levels))
    for m, k, n in ((3, 50, 4), (2, 131, 3), (2, 3, 2)):
        a, b = operands(rng, m, k, n)
        c = rng.normal(size=(m, n)).astype(np.float32)
        last = levels[-1]
        f = FORMATS[str(last.acc_format)]
        plain, got = (ns.matmul(a, b, target=unit, c=v).view(np.uint32) for v in (None, c))
        for i, j in np.ndindex(m, n):
            x, y = (
                [BRAIN.read(int(v)) for v in a.codes[i]],
                [BRAIN.read(int(v)) for v in b.codes[:, j]],
            )
            want = leveled(UNITS[name], x, y, levels)
            assert int(plain[i, j]) == want
            start = om.round_bits(f, *om.total_of([om.F32.read(want)]), mode=last.rounding)
            start = (
                start if om.F32.read(want)[1] else want >> (31 - f.exponent_bits - f.fraction_bits)
            )
            own = om.F32.read(int(c[i, j].view(np.uint32)))
            assert int(got[i, j]) == wide(f, om.fma(own, ONE, start, f=f, mode=last.rounding))


def test_one_level_of_float32_is_promote_every():
    rng = np.random.default_rng(3)
    a, b = operands(rng, 5, 200, 6)
    for name in UNITS:
        one = ns.get_target(name, levels=(Level(32),))
        two = ns.get_target(name, promote_every=32)
        got, stats = ns.matmul(a, b, target=one, stats=True)
        want, other = ns.matmul(a, b, target=two, stats=True)
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
        assert stats == other


@pytest.mark.parametrize("levels", LEVELS)
def test_every_way_to_look_agrees(levels):
    a, b = operands(np.random.default_rng(4), 1, 70, 1)
    unit = ns.get_target("nvidia.ampere.mma", levels=levels)
    want = ns.matmul(a, b, target=unit).view(np.uint32)
    found = trace(a, b, unit)
    np.testing.assert_array_equal(found.d.view(np.uint32), want)
    counted, stats = ns.matmul(a, b, target=unit, stats=True)
    np.testing.assert_array_equal(counted.view(np.uint32), want)
    assert stats.steps > len(found.chains)
    again = Target.from_tables(tomllib.loads(unit.to_toml()))
    assert again == unit
    assert again.levels == levels
    text = explain_mma(unit, values=[(1.5, 2)] * 9, formats="bfloat16")
    assert "D = 27, " in text


def test_toml():
    text = """
    name = "my.array"
    maturity = "assumed"
    evidence = "a sketch"
    source = "a notebook"
    [[levels]]
    every = 128
    acc_format = "float_e8m13"
    rounding = "rtz"
    [[levels]]
    every = 4096
    [rules.bf16]
    kind = "Mac"
    acc_format = {p = 18, emin = -126, emax = 127}
    """
    head, tail = text.split("    [rules")
    unit = Target.from_tables(tomllib.loads(head + '    [rules.bf16]\n    kind = "Mac"\n'))
    assert unit.levels == (Level(128, "float_e8m13", "rtz"), Level(4096))
    assert tail


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (Level(8), Level(12))}, "a multiple of the one before; got 8, 12"),
        ({"levels": (Level(8), Level(8))}, "a multiple of the one before; got 8, 8"),
        ({"levels": (Level(8),), "promote_every": 8}, "leave those out"),
        ({"levels": (Level(8),), "split_k": 2}, "leave those out"),
        ({"levels": (Level(0),)}, "every is 1 to"),
        ({"levels": (Level(4, rounding="up"),)}, "rounding is one of rne"),
        ({"levels": (Level(4, "float64"),)}, "acc_format: format 'float64'"),
        ({"levels": (Level(4, "int32"),)}, "2 to 24 bits of precision"),
        ({"levels": (Level(4, "no"),)}, "acc_format"),
        ({"levels": [Level(4)]}, "a tuple of Level"),
        ({"levels": (4,)}, "a tuple of Level"),
    ],
)
def test_what_levels_cannot_be(changes, message):
    with pytest.raises(ns.NumsimError, match=message):
        ns.get_target("ideal.fp32", **changes)


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_integers_are_added_in_outer_bits(overflow):
    rng = np.random.default_rng(5)
    a, b = (ns.QTensor.from_codes(rng.integers(-128, 128, s).astype(np.int8), "int8")
            for s in ((3, 90), (90, 4)))  # fmt: skip
    c = rng.integers(-9000, 9000, (3, 4)).astype(np.int32)
    changes = {"acc_bits": 15, "outer_bits": 17, "overflow": overflow}
    unit = ns.get_target("ideal.int", levels=(Level(4), Level(16)), **changes)
    narrow = {"bits": 15, "overflow": overflow}
    got = ns.matmul(a, b, target=unit, c=c)
    fit = om.wrap if overflow == "wrap" else om.clamp
    for i, j in np.ndindex(3, 4):
        x, y = a.codes[i].tolist(), b.codes[:, j].tolist()
        total = 0
        for u, v in om.groups(x, y, 16):
            part = 0
            for p, q in om.groups(u, v, 4):
                part = fit(part + om.int_dot(p, q, 0, **narrow), 17)
            total = fit(total + part, 17)
        assert got[i, j] == fit(total + int(c[i, j]), 17)
    with pytest.raises(ns.NumsimError, match="outer_bits; leave out"):
        ns.get_target("ideal.int", levels=(Level(8, rounding="rtz"),))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("levels = 3", r"tables \[\[levels\]\]"),
        ("[[levels]]\nrounding = 'rne'", "every"),
        ("[[levels]]\nevery = 4\nrows = 3", "rows"),
    ],
)
def test_toml_that_is_no_level(table, message):
    unit = replace(ns.get_target("ideal.fp32"), levels=())
    head, _, rules = unit.to_toml().partition("\n[rules")
    with pytest.raises(ns.NumsimError, match=message):
        Target.from_tables(tomllib.loads(f"{head}\n{table}\n[rules{rules}"))
