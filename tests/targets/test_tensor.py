"""What is looked up of a tensor, against its values one by one, and which tensors are refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

import numsim as ns
from numsim.formats import get_format
from numsim.kernels.rules.exact import extent
from numsim.quant import QTensor
from numsim.targets import get_target
from numsim.targets.chain import Chain
from numsim.targets.fast.exact import in_double, reaches, rows_in_double
from numsim.targets.tensor import Survey, edges, planes, survey

E4M3 = get_format("float8_e4m3fn")
FORMATS = [
    *(get_format(name) for name in (
        "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e8m0fnu", "float6_e2m3fn",
        "float4_e2m1fn", "hifloat8", "nf4", "int8", "int5", "uint3", "q3.4", "int12", "uint16",
        "float16", "bfloat16", "tfloat32",
    )),
    *(replace(E4M3, bias=bias) for bias in (-130, -115, 140, 150, 160, 900)),
    replace(get_format("float16"), bias=140),
]  # fmt: skip


def lowest(value):
    """Return the exponent of the lowest bit that is set of a number."""
    above, below = map(abs, value.as_integer_ratio())
    return (above & -above).bit_length() - below.bit_length()


def by_hand(codes, fmt):
    patterns = codes.astype(np.int64) & ((1 << fmt.bits) - 1)
    values = [float(v) for v in fmt.decode_bits(patterns)]
    with np.errstate(all="ignore"):
        singles = [float(v) for v in np.array(values, np.float64).astype(np.float32)]
    some = [v for v in values if math.isfinite(v) and v]
    exponents = [max(math.frexp(v)[1] - 1, fmt.emin) for v in some] or [0]
    held = [v for v in singles if math.isfinite(v) and v]
    high = max((math.frexp(v)[1] for v in held), default=0)
    low = min(map(lowest, held), default=0)
    extent = all(map(math.isfinite, singles)), low, high
    return Survey(all(map(math.isfinite, values)), min(exponents), max(exponents), extent)


def every(fmt):
    low = -(1 << (fmt.bits - 1)) if fmt.kind == "integer" and fmt.signed else 0
    return np.arange(low, low + (1 << fmt.bits)).astype(fmt.code_dtype)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.label)
def test_a_survey_says_what_values_say(fmt):
    rng, codes = np.random.default_rng(0), every(fmt)
    count = 1 << (8 * fmt.code_dtype.itemsize) if fmt.code_dtype.itemsize < 4 else 100
    own = codes if len(codes) <= 256 else rng.choice(codes, 100)
    for some in (
        *own[:, None], codes[:0], codes[:1].repeat(count + 1), rng.choice(codes, count + 1),
        rng.choice(codes[:3], count + 1), *rng.choice(codes, (20, 4)),
    ):  # fmt: skip
        found = survey(QTensor(some[None], fmt))
        want = by_hand(np.unique(some), fmt)
        assert found == want, some


@pytest.mark.parametrize("fmt", ["float4_e2m1fn", "int4", "uint3", "int12", "tfloat32"])
def test_codes_that_a_format_does_not_have_are_refused(fmt):
    """Their classes would be read beyond a table, or be those of other codes."""
    f = get_format(fmt)
    for code in {1 << f.bits, 1 << 20} - {0} if fmt == "tfloat32" else {1 << f.bits}:
        for count in (3, 70_000):
            codes = np.zeros((1, count), f.code_dtype)
            codes[0, 2] = code
            with pytest.raises(ns.NumsimError, match=rf"first is {code} at index \(0, 2\)"):
                survey(QTensor(codes, f))
        with pytest.raises(ns.NumsimError, match=rf"first is {code} "):
            planes(QTensor(codes, f), True)


@pytest.mark.parametrize("unit", ["ideal.exact", "ideal.fp32", "nvidia.ampere.mma"])
@pytest.mark.parametrize("name", ["tfloat32", "bfloat16"])
def test_no_rows_and_no_columns(unit, name):
    f = get_format(name)
    for m, n in [(0, 3), (3, 0), (0, 0)]:
        a, b = (QTensor(np.ones(shape, f.code_dtype), f) for shape in ((m, 16), (16, n)))
        assert ns.matmul(a, b, target=unit).shape == (m, n)


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [("float8_e4m3fn", "u2"), ("float8_e4m3fn", "i1"), ("bfloat16", ">u2"), ("int8", "i8"),
     ("float16", "u1")],
)  # fmt: skip
def test_codes_of_another_type_than_the_formats_are_refused(fmt, dtype):
    """Kernels would read their bytes as other codes."""
    good = QTensor.from_codes(np.full((2, 2), 7), fmt)
    other = QTensor(np.full((2, 2), 7, dtype), good.fmt)
    for pair in ((good, other), (other, good)):
        for call in (ns.matmul, lambda a, b, target: ns.plan(target, a, b)):
            with pytest.raises(ns.NumsimError, match="are stored as"):
                call(*pair, target="ideal.fp32")
    again = QTensor.from_codes(other.codes, fmt)
    assert np.array_equal(
        ns.matmul(again, good, target="ideal.fp32"), ns.matmul(good, good, target="ideal.fp32")
    )


def test_edges_lie_beyond_all_numbers_for_zeros():
    found = edges(E4M3)
    assert found[0].tolist() == found[0x80].tolist() == [4096, -4096, 4096, -4096, 0]
    assert found[1].tolist() == [-6, -6, -9, -8, 0]  # 2**-9, whose exponent is the format's least
    assert found[0x7E].tolist() == [8, 8, 6, 9, 0]  # 448
    assert found[0x7F].tolist() == [4096, -4096, 4096, -4096, 3]  # NaN


@pytest.mark.parametrize("name", ["float8_e5m2", "float8_e4m3fn", "bfloat16", "float16", "int8"])
def test_rows_of_which_float64_holds_the_sums_by_their_lowest_bits(name):
    """Each row alone has the answer that its values give, by the lowest bit of any number."""
    rng, fmt = np.random.default_rng(4), get_format(name)
    unit = ns.get_target("ideal.exact", group=8)
    rule, some = unit.rules[0][1], set()
    codes = every(fmt)
    codes = codes[np.isfinite(fmt.decode_bits(codes.astype(np.int64) & ((1 << fmt.bits) - 1)))]
    for width in (2, 5, 11):  # values of a row lie near each other, or not
        middle = rng.integers(0, len(codes), (60, 1))
        spread = rng.integers(-(4**width), 4**width, (60, 16)) // 2
        a = QTensor.from_codes(codes[np.clip(middle + spread, 0, len(codes) - 1)], fmt)
        b = floats_near_one(rng, (16, 5), width)
        chain = Chain(rule, a, b, None, get_format("float32"), unit.name)
        found = rows_in_double(chain, 0)
        for row in range(60):
            low, high = (
                edge + other
                for edge, other in zip(
                    extent(ns.decode(a.codes[row], fmt).astype(np.float32).view(np.uint32))[1:],
                    survey(b).extent[1:], strict=True,
                )
            )  # fmt: skip
            want = in_double(chain, low, high, reaches(chain)[0, row])
            assert found[row] == want
            some.add(bool(want))
    assert some == {True, False} or fmt.bits == 8


def floats_near_one(rng, shape, width):
    values = np.ldexp(rng.standard_normal(shape), rng.integers(-width, width + 1, shape))
    return QTensor.from_codes(ns.encode(values, "float16"), "float16")


@pytest.mark.parametrize("unit", ["nvidia.hopper.wgmma", "ideal.int"])
@pytest.mark.parametrize("steps", [{}, {"promote_every": 128}, {"split_k": 8}])
@pytest.mark.parametrize("rows", [64, 600])
def test_many_rows_are_not_kept_packed_in_runs_of_k_either(unit, steps, rows):
    """Few rows are packed once; of many, packed rows took thirteen times the memory of codes."""
    a, b = (
        QTensor.from_codes(np.ones(shape, int), "int8" if unit == "ideal.int" else "float8_e5m2")
        for shape in ((rows, 1024), (1024, 8))
    )
    ns.matmul(a, b, target=replace(get_target(unit), **steps))
    parts = [made for key, made in a.packed.items() if key[0] == "slice"] or [a]
    kept = [key[0] for part in parts for key in part.packed if key[0].endswith("rows")]
    assert len(parts) == (8 if steps else 1)
    assert len(kept) == (len(parts) if rows == 64 else 0)
