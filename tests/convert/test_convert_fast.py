"""Fast paths equal the generic kernel; layouts, streams and memory behave as documented."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import tracemalloc
import warnings
from dataclasses import replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from oracle import philox

import numsim as ns
from numsim.dispatch import branch_free, exact, halves, workers
from numsim.formats import Format
from numsim.kernels.convert import decode as fast_decode
from numsim.kernels.convert import float32_stochastic as stochastic
from numsim.kernels.convert.round import RNE, SATURATE, SPECIAL
from numsim.kernels.ir import simd

FLOATS = (
    "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e3m4",
    "float6_e2m3fn", "float4_e2m1fn", "float_e8m1", "float_e1m6", "float_e5m0", "p3109_k8p1se",
    "p3109_k8p4ue", "p3109_k2p1sf", "float8_e8m0fnu",
)  # fmt: skip
INTEGERS = ("int8", "int2", "uint16", "q3.4", "uq0.16")


def patterns():
    """All 65,536 upper halves, on both sides of ties of long and of short formats; random ones."""
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    near = [upper + np.uint32(d) for d in (0, 1, 0x7FFF, 0x8001, 0xFFFF)]
    random = np.random.default_rng(1).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    return np.concatenate([*near, random]).view(np.float32)


def nan_of(f):
    """Code of NaN and the sign it keeps: the maximum where the format has none."""
    keeps = f.params.sign_bit if f.params.nan_signed else 0
    return (f.nan_code, keeps) if f.has_nan else (f.max_code, 0)


def both(f, plan, x, start=3):
    """Codes of the fast worker and of the generic one, or None where there is no fast one."""
    worker = branch_free.branch_free(f, plan)
    if worker is None:
        return None
    got, want = np.empty(x.size, f.code_dtype), np.empty(x.size, f.code_dtype)
    worker(x, got, start, workers.NO_RANDOM)
    exact.generic(f, plan)(x, want, start, workers.NO_RANDOM)
    return got, want


@pytest.mark.parametrize(("bits", "variant"), [(64, 0), (64, 2), (3, 0), (32, 0), (1, 1), (31, 1)])
@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_stochastic_worker_is_the_generic_kernel(name, bits, variant):
    f, x = ns.get_format(name), patterns()[::3].copy()
    for overflow in range(3):
        pair = both(f, workers.Plan(6, overflow, bits, variant, 77, 2**33 + 4, *nan_of(f)), x)
        generic = f.conversion == "p3109" or "e8m0" in name
        assert pair is not None or (name.endswith("ue") and overflow == 1) or generic
        assert pair is None or np.array_equal(*pair)


@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_deterministic_workers_are_the_generic_kernel(name):
    f, x = ns.get_format(name), patterns()
    for mode, overflow in itertools.product(range(6), range(3)):
        pair = both(f, workers.Plan(mode, overflow, 64, 0, 0, 0, *nan_of(f)), x)
        assert pair is None or np.array_equal(*pair), (mode, overflow)


@pytest.mark.parametrize(
    "name", [n for n in FLOATS if ns.get_format(n).bits == 8 and ns.get_format(n).signed]
)
def test_eight_bits_on_both_paths(name):
    """To nearest even and stochastically, of every length; NaN in any place is met."""
    f, x = ns.get_format(name), patterns()[::2][:100_003].copy()
    for overflow, (mode, bits, variant) in itertools.product(
        range(2), [(0, 64, 0), (6, 64, 0), (6, 17, 0), (6, 5, 1)]
    ):
        plan = workers.Plan(mode, overflow, bits, variant, 3, 5, *nan_of(f))
        for path in simd.PATHS:
            with simd.force(path):
                for part, start in ((x, 0), (x[1:64], 7), (x[5:133], 2), (x[:2113], 1), (x[:0], 0)):
                    got, want = both(f, plan, part, start)
                    assert np.array_equal(got, want), (overflow, mode, bits, path)
    refuses = workers.Plan(0, 0, 64, 0, 0, 0, -1)
    for size, at in [(64, 0), (128, 127), (70, 69), (1000, 500)]:
        one = np.ones(size, np.float32)
        one[at] = np.nan
        found = branch_free.branch_free(f, refuses)(
            one, np.empty(size, np.uint8), 0, workers.NO_RANDOM
        )
        assert found == (1, at)


@pytest.mark.exhaustive
def test_every_small_format_every_worker():
    x = patterns()
    small = [f for f in map(ns.get_format, ns.list_formats()) if f.bits <= 16]
    names = [f.name for f in small if f.kind != "table"]
    names += [
        f"p3109_k{k}p{p}{s}{d}"
        for k in range(2, 9) for s in "su" for p in range(1, k + (s == "u")) for d in "ef"
        if (k, s, d) != (2, "s", "e")
    ]  # fmt: skip
    for name in names:
        f = ns.get_format(name)
        for mode, overflow in itertools.product(range(7), range(3)):
            for bits, variant in ((64, 0), (17, 0), (5, 1)) if mode == 6 else ((64, 0),):
                pair = both(f, workers.Plan(mode, overflow, bits, variant, 5, 6, *nan_of(f)), x)
                assert pair is None or np.array_equal(*pair), (name, mode, overflow, bits)


@pytest.mark.parametrize("name", [n for n in ns.list_formats() if ns.get_format(n).bits <= 16])
def test_decoding_is_the_table_bit_for_bit(name):
    f = ns.get_format(name)
    codes = np.arange(1 << f.bits, dtype=f"u{f.code_dtype.itemsize}")
    signed = f.kind == "integer" and f.signed
    if signed:
        shift = 8 * codes.itemsize - f.bits
        codes = (codes << shift).view(f.code_dtype) >> shift
    got = ns.decode(codes, name)
    want = np.empty_like(got)
    table = f.values().astype(got.dtype)
    fast_decode.decode_table(np.arange(1 << f.bits, dtype=np.uint16), want, table)
    assert got.tobytes() == want.tobytes()


# --- the stream


def test_the_generator_has_the_published_answers():
    """Known answers of the Random123 distribution for philox2x32 with 7 rounds."""
    assert philox(0, 0, 0) == (0x257A3673, 0xCD26BE2A)
    assert philox(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF) == (0xAB302C4D, 0x3DC9D239)
    assert philox(0x243F6A88, 0x85A308D3, 0x13198A2E) == (0xBEDBBE6B, 0xE4C770B3)


@pytest.mark.parametrize("bits", [1, 8, 20, 32])
@pytest.mark.parametrize("offset", [0, 1, 2**32 - 5, 2**33 - 3, 2**62 + 1])
def test_the_stream_is_philox_as_documented(bits, offset):
    seed, count = 0xDEADBEEF, 9
    words = [
        philox(n // 2 & 0xFFFFFFFF, n // 2 >> 32, seed)[n % 2]
        for n in range(offset, offset + count)
    ]
    x = np.random.default_rng(2).standard_normal(count).astype(np.float32)
    supplied = np.array([w >> (32 - bits) for w in words], np.uint64)
    options = {"rounding": "sr", "random_bits": bits}
    for dtype in (np.float32, np.float64):
        got = ns.encode(x.astype(dtype), "e4m3", seed=seed, offset=offset, **options)
        want = ns.encode(x.astype(dtype), "e4m3", random=supplied, **options)
        assert np.array_equal(got, want)


def test_the_lower_word_decides_a_tie_of_the_upper_one():
    """The one case in which the 32-bit worker hands over: built from the stream itself."""
    seed, found = 9, 0
    f = ns.get_format("float8_e4m3fn")
    plan = workers.Plan(6, 0, 64, 0, seed, 0, f.nan_code)
    x = np.zeros(20_000, np.float32)
    for n in range(x.size):
        bar = 0xFFFFFFFF - philox(n // 2, 0, seed)[n % 2]
        if 1 << 22 <= bar < 1 << 23:  # sig = 2 * bar + 1: 33 bits are discarded
            x[n] = np.ldexp(2 * bar + 1, -9 - 33)
            found += 1
    assert found > 5
    common = (
        x.view(np.uint32), None, np.empty(x.size, np.uint8),
        branch_free.scalars_of(f, 6, 0, f.nan_code),
        stochastic.noise(64, False, seed),
    )  # fmt: skip
    assert stochastic.float_sr(*common, np.uint64(0))[1]
    assert stochastic.float_sr_narrow(*common, np.float32(2.0 ** (27 + 9)), np.uint64(0))[1]
    got, want = both(f, plan, x, start=0)
    assert np.array_equal(got, want)
    wide = ns.encode(x.astype(np.float64), f, rounding="sr", seed=seed)
    assert np.array_equal(got, wide)


@pytest.mark.parametrize("bits", [27, 28, 29, 32, 64])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float_e5m5"])
def test_bits_beyond_the_fixed_point_of_a_subnormal(name, bits):
    """Fractions that meet all ones at the last bit kept, and bits below that decide."""
    f, seed = ns.get_format(name), 5
    point = 31 - f.precision
    quantum = f.min_subnormal
    x = np.zeros(1 << 14, np.float32)
    hit = 0
    for n in range(x.size):
        word = philox(n // 2, 0, seed)[n % 2]
        if bits < 32:
            word &= 0xFFFFFFFF << (32 - bits) & 0xFFFFFFFF
        kept = ((1 << point) - 1) - (word >> (32 - point))
        if 0 < kept < 1 << (point - 6):
            x[n] = (kept + (0.0, 0.5, 0.75)[n % 3]) * 2.0**-point * quantum * (-1) ** n
            hit += 1
    assert hit > 100
    for variant in (0, 1) if bits < 32 else (0,):
        pair = both(f, workers.Plan(6, 0, bits, variant, seed, 0, f.nan_code), x, start=0)
        assert np.array_equal(*pair)


# --- types, layouts, memory


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8", "float16", "nf4"])
@pytest.mark.parametrize("options", [{}, {"rounding": "sr", "seed": 4}])
def test_results_go_into_the_callers_array(name, options):
    x = np.random.default_rng(0).standard_normal((60, 700)).astype(np.float32)[::2]
    want = ns.encode(x, name, **options)
    codes = np.full_like(want, 3)
    assert ns.encode(x, name, out=codes, **options) is codes
    assert np.array_equal(codes, want)
    values = np.empty(x.shape, np.float32)
    assert ns.decode(codes, name, out=values) is values
    assert ns.cast(x, name, out=np.empty_like(values), **options).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (np.empty(3, np.uint8), "shape (4,)"),
        (np.empty(4, np.int8), "type uint8"),
        ([0] * 4, "got list"),
        (np.empty(8, np.uint8)[::2], "out is C-contiguous"),
    ],
)
def test_arrays_that_cannot_take_the_codes(out, words):
    x = np.zeros(4, np.float32)
    with pytest.raises(ns.NumsimError, match=re.escape(words)):
        ns.encode(x, "e4m3", out=out)
    with pytest.raises(ns.NumsimError, match="decode: out is"):
        ns.decode(np.zeros(4, np.uint8), "e4m3", out=out)
    frozen = np.empty(4, np.uint8)
    frozen.flags.writeable = False
    with pytest.raises(ns.NumsimError, match="writeable"):
        ns.encode(x, "e4m3", out=frozen)
    with pytest.raises(ns.NumsimError, match="shares memory"):
        ns.encode(x, "e4m3", out=x.view(np.uint8)[:4])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1fn", "int8", "nf4", "float_e8m12"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_table_of_16_bit_inputs_is_the_float32_path(name, dtype):
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(all="ignore"):
        x = x[~np.isnan(x)]
    for rounding, overflow in itertools.product(("rne", "rup", "rto"), ("saturate", "special")):
        options = {"rounding": rounding, "overflow": overflow}
        want = ns.encode(x.astype(np.float32), name, **options)
        assert np.array_equal(ns.encode(x, name, **options), want)
        parts = [ns.encode(part, name, **options) for part in np.array_split(x, 9)]
        assert np.array_equal(np.concatenate(parts), want)


@pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int16, np.uint64,
     ml_dtypes.float8_e5m2, ml_dtypes.int4],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("rounding", ["rne", "sr"])
def test_big_strided_arrays(dtype, rounding):
    rng = np.random.default_rng(3)
    base = (rng.standard_normal((300, 400, 3)) * 3).astype(np.float32).astype(dtype)
    for x in (base[::-1, ::2], base.T, base[..., 1], base.transpose(1, 0, 2)[3:]):
        packed = np.array(x.tolist(), dtype) if x.size < 100 else np.ascontiguousarray(x)
        options = {"rounding": "sr", "seed": 8} if rounding == "sr" else {"rounding": rounding}
        for name in ("float8_e4m3fn", "int8", "nf4"):
            got = ns.encode(x, name, **options)
            assert np.array_equal(got, ns.encode(packed, name, **options))
            assert np.array_equal(ns.decode(got.T, name), ns.decode(got, name).T)


def test_supplied_integers_of_any_layout():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((200, 300)).astype(np.float32)
    random = rng.integers(0, 1 << 16, (300, 200), dtype=np.uint16)
    want = ns.encode(x, "e4m3", rounding="sr", random=np.ascontiguousarray(random.T))
    assert np.array_equal(ns.encode(x, "e4m3", rounding="sr", random=random.T), want)
    wide = random.T.astype(np.int64)
    got = ns.encode(x, "e4m3", rounding="sr", random=wide, random_bits=16)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8", "float16", "nf4", "posit8_es1"])
@pytest.mark.parametrize(
    "dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64", "int32", "int64", "uint64"]
)
def test_no_temporary_is_larger_than_the_output(name, dtype):
    x = np.zeros((1000, 2002), dtype)[:, ::2]
    for array in (x, np.ascontiguousarray(x)):
        for rounding in ("rne", "rup", "sr"):
            ns.encode(array[:2], name, rounding=rounding)
            ns.encode(array, name, rounding=rounding)
            tracemalloc.start()
            codes = ns.encode(array, name, rounding=rounding)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 2 * codes.nbytes
    if name == "int8":
        ns.encode(x[:2], name, overflow="wrap")
        tracemalloc.start()
        codes = ns.encode(x, name, overflow="wrap")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * codes.nbytes
    tracemalloc.start()
    values = ns.decode(codes, name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * values.nbytes


# --- wrong input, with every warning an error


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.array([[1, None]], object), "object"),
        ([1.0, None], "object"),
        ([[1.0], [2.0, 3.0]], "no array"),
        (np.array([1j]), r"1j\) at index \(0,\); encode x.real"),
        (np.array(["a"]), "'a'"),
        (np.array([b"a"]), "index"),
        (np.array([[True]]), r"True_? ?\)? at index \(0, 0\); x.astype\(np.uint8"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "1 of 2"),
        (np.zeros(2, [("a", "f4")]), "got"),
        (np.zeros(2, np.longdouble), r"'0.0'\) at index \(0,\)"),
        (10**30, "object"),
    ],
    ids=str,
)
def test_what_is_not_a_real_number(x, words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ns.NumsimError, match=words):
            ns.encode(x, "e4m3")


@pytest.mark.parametrize(
    ("codes", "name", "words"),
    [
        (np.array([[3, 15], [16, 99]]), "float4_e2m1fn", r"2 of 4 .* 16 at index \(1, 0\)"),
        (np.array([-1]), "float8_e4m3fn", r"-1 at index \(0,\)"),
        (np.array([8], np.int8), "int4", "-8 to 7"),
        (np.array([-9], np.int64), "int4", "-9"),
        (np.array([1 << 40], np.uint64), "float16", "1099511627776"),
        (np.array([2**63], np.uint64), "int8", "9223372036854775808"),
        (np.array([0.5]), "float8_e4m3fn", "integers"),
        (np.ma.masked_array([1], [True]), "float8_e4m3fn", "mask"),
        (np.array([b"1"]), "float8_e4m3fn", "integers"),
    ],
    ids=str,
)
def test_wrong_codes(codes, name, words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ns.NumsimError, match=words):
            ns.decode(codes, name)


def test_nan_in_a_big_array_names_count_and_first_index():
    for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16):
        x = np.ones((300, 400), dtype)
        x[137, 5] = x[200, 0] = x[299, 399] = np.nan
        for array, index in ((x, r"\(137, 5\)"), (x.T, r"\(0, 200\)")):
            for rounding in ("rne", "rtz", "sr"):
                with pytest.raises(ns.NumsimError, match=rf"3 of 120000 .* {index}"):
                    ns.encode(array, "int8", rounding=rounding)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_signalling_nan_and_overflow_warn_nobody(dtype):
    width = f"u{np.dtype(dtype).itemsize}"
    exponents = {
        2: 0x7F81 if dtype is not np.float16 else 0x7C01,
        4: 0x7F800001,
        8: 0x7FF << 52 | 1,
    }
    x = np.array([exponents[np.dtype(dtype).itemsize]] * 3, width).view(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(ns.cast(x[::2], "e4m3")).all()
        assert np.isnan(ns.cast(x, "float16")).all()
        assert ns.cast(np.array([3e38]), "e4m3", overflow="special").shape == (1,)


@pytest.mark.parametrize(
    "options",
    [{"random_bits": 0}, {"random_bits": 40}, {"random_bits": True}, {"random_bits": 3.0},
     {"seed": -1}, {"seed": 1 << 32}, {"offset": 1 << 63}, {"offset": 0.5}],
    ids=str,
)  # fmt: skip
def test_stochastic_arguments_outside_their_range(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ns.NumsimError, match=name) as caught:
        ns.encode([1.0], "e4m3", rounding="sr", **options)
    assert repr(value) in str(caught.value)


def test_supplied_integers_outside_their_range():
    with pytest.raises(ns.NumsimError, match=r"1 of 3 .* 8 at index \(2,\)"):
        ns.encode([1.0] * 3, "e4m3", rounding="sr", random_bits=3, random=[0, 7, 8])


@pytest.mark.parametrize("random", [[0, 7, 8], np.arange(3), np.arange(3, dtype=np.int8)], ids=str)
def test_supplied_integers_of_a_signed_type_need_their_bits(random):
    with pytest.raises(
        ns.NumsimError, match=r"pass random.astype\(np.uint\w+\), or random_bits= to "
    ):
        ns.encode([1.0] * 3, "e4m3", rounding="sr", random=random)
    ns.encode([1.0] * 3, "e4m3", rounding="sr", random=random, random_bits=4)


@pytest.mark.parametrize(
    "options",
    [{"sr": "half_offset"}, {"sr": "aws.trainium"}, {"seed": 1}, {"offset": 1}, {"random_bits": 3},
     {"random": np.zeros(1, np.uint8)}],
    ids=str,
)  # fmt: skip
def test_stochastic_arguments_without_sr_are_not_ignored(options):
    with pytest.raises(ns.NumsimError, match=f"{next(iter(options))}=.* belongs to rounding='sr'"):
        ns.encode([1.0], "bfloat16", rounding="rtz", **options)


def test_wrap_refuses_floats_and_infinities():
    with pytest.raises(ns.NumsimError, match="integers and fixed point"):
        ns.encode([1.0], "e4m3", overflow="wrap")
    for dtype in (np.float16, np.float64, ml_dtypes.bfloat16):
        with pytest.raises(ns.NumsimError, match=r"index \(1,\)"):
            ns.encode(np.array([0, np.inf], dtype), "int8", overflow="wrap")


# --- big endian, forked processes, exact stochastic rounding into tables, hostile arguments


def test_big_endian_is_neither_narrowed_nor_signed():
    assert ns.cast(np.array([-431.99999999999994], ">f8"), "e4m3").tolist() == [-416.0]
    got = ns.cast(np.array([1e39], ">f8"), "e4m3", overflow="saturate_finite")
    assert got.tolist() == [448.0]
    assert ns.cast(np.array([2**63], ">u8"), "float32").tolist() == [2.0**63]
    x = np.array([1e300, 300.7, -129.0])
    want = ns.encode(x, "int8", overflow="wrap")
    assert ns.encode(x.astype(">f8"), "int8", overflow="wrap").tolist() == want.tolist()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    x = np.linspace(-400, 400, 1 << 18, dtype=np.float32)
    want = ns.encode(x, "e4m3")  # starts the pool where Numba has several threads
    child = os.fork()
    if not child:
        signal.alarm(60)
        os._exit(0 if np.array_equal(ns.encode(x, "e4m3"), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_stochastic_rounding_into_tables_drops_no_bit():
    most = np.array([2**64 - 1], np.uint64)
    got = ns.encode([2.0**-78], "posit8_es2", rounding="sr", random=most)
    assert got.tolist() == [1]
    got = ns.encode(
        [0.11348121820249461], "nf4", rounding="sr", random_bits=32,
        random=np.array([2505126945], np.uint32),
    )  # fmt: skip
    assert got.tolist() == [8]


@pytest.mark.parametrize("variant", ["truncate", "half_offset", "rne_first"])
@pytest.mark.parametrize("name", ["nf4", "posit8_es2", "posit16_es1"])
def test_stochastic_rounding_into_tables_by_the_definition(name, variant):
    values = np.unique(ns.get_format(name).values()[np.isfinite(ns.get_format(name).values())])
    rng = np.random.default_rng(8)
    for bits in (1, 4, 32, None):
        b = bits or 64
        lo = rng.integers(0, values.size - 1, 200)
        r = rng.integers(0, (1 << b) - 1, 200, dtype=np.uint64, endpoint=True)
        # fractions where the carry begins, and their neighbours
        cut = (2.0**b - r.astype(np.float64)) / 2.0**b
        cut = np.where(values[lo] >= 0, cut, 1 - cut)
        x = values[lo] + cut * (values[lo + 1] - values[lo])
        x = np.concatenate([x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf)])
        x, r = np.clip(x, values[0], values[-1]), np.tile(r, 3)
        got = ns.cast(x, name, rounding="sr", random_bits=bits, sr=variant, random=r)
        for v, draw, result in zip(x.tolist(), r.tolist(), got.tolist(), strict=True):
            assert np.float32(result) == np.float32(_stochastic(values, v, draw, b, variant, bits))


def _stochastic(values, v, r, b, variant, bits):
    at = int(np.searchsorted(values, v))
    if values[at] == v:
        return values[at]
    near, far = (values[at - 1], values[at]) if v > 0 else (values[at], values[at - 1])
    f = (Fraction(v) - Fraction(near)) / (Fraction(far) - Fraction(near))
    if bits is None or variant == "truncate":
        away = math.floor(f * 2**b) + r >= 2**b
    elif variant == "half_offset":
        away = math.floor(f * 2 ** (b + 1)) + 2 * r + 1 >= 2 ** (b + 1)
    else:
        away = round(f * 2**b) + r >= 2**b
    return far if away else near


def test_wide_integers_go_into_tables_by_all_their_bits():
    x, r = np.array([2**54 + 1]), np.array([2**64 - 1], np.uint64)
    assert ns.cast(x, "posit16_es2", rounding="sr", random=r).item() > 2**54
    assert ns.cast(-x, "posit16_es2", rounding="sr", random=r).item() < -(2**54)


class _Hostile:
    def __repr__(self):  # without an address: test processes must agree on the names of tests
        return "hostile"

    def __array__(self, *arguments, **options):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "options",
    [{"sr": ["truncate"]}, {"sr": {}}, {"sr": np.array(["truncate"] * 2)},
     {"rounding": np.array(["rne", "sr"])}, {"overflow": np.array(["wrap", "wrap"])},
     {"nan": np.array(["max", "zero"])}, {"random_bits": np.array([1, 2])},
     {"random_bits": np.array([1, 2]), "sr": "aws.trainium"}, {"x": _Hostile()},
     {"random": _Hostile()}],
    ids=str,
)  # fmt: skip
def test_arguments_of_hostile_types(options):
    with pytest.raises(ns.NumsimError):
        ns.encode(**{"x": [1.0], "fmt": "bfloat16", "rounding": "sr", **options})


@pytest.mark.parametrize("function", [ns.encode, ns.cast])
def test_the_warning_points_at_the_caller(function):
    with pytest.warns(ns.UnvalidatedWarning) as caught:
        function([1.0], "bfloat16", rounding="sr", sr="aws.trainium")
    assert caught[0].filename == __file__


def test_arrays_of_other_classes_take_no_codes_and_random_stays_apart():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ns.NumsimError, match="got matrix"):
        ns.encode(x, "e4m3", out=np.zeros((2, 3), np.uint8).view(np.matrix))
    with pytest.raises(ns.NumsimError, match="got MaskedArray"):
        ns.decode(np.zeros(3, np.uint8), "e4m3", out=np.ma.zeros(3, np.float32))
    buffer = np.zeros(400, np.uint8)
    how = {"rounding": "sr", "random_bits": 4, "random": buffer[:200]}
    with pytest.raises(ns.NumsimError, match="shares memory with random"):
        ns.encode(np.ones(200, np.float32), "e4m3", out=buffer[10:210], **how)
    assert ns.encode([], "e4m3", rounding="sr", random=[], random_bits=4).size == 0
    with pytest.raises(ns.NumsimError, match="seed= belongs"):
        ns.encode(x, "e4m3", seed=np.array([1, 2]))


def test_infinities_of_unsigned_formats_without_nan():
    f = ns.Format("u5", "float", 5, 3, 3, signed=False, inf="top")
    x = [1, -np.inf, np.inf, -1]
    for overflow in ("saturate", "special", "saturate_finite"):
        single = ns.encode(np.float32(x), f, overflow=overflow)
        assert np.array_equal(single, ns.encode(np.float64(x), f, overflow=overflow))


def test_a_relative_of_float32_is_not_float32():
    f = replace(ns.get_format("float32"), nan="all_ones", inf="none")
    assert ns.decode(np.array([0x7F800000, 0], np.uint32), f).tolist() == [2.0**128, 0.0]


def test_the_middle_of_far_neighbours_is_exact():
    f = ns.Format("t", "table", 2, 2, 0, table=(0.0, 2.0**-100, 1.0, 2.0))
    half = 0.5 + 2.0**-53
    for rounding in ("rne", "rna"):
        codes = ns.encode([0.5, half, -0.5, 0.75, 1.5], f, rounding=rounding)
        assert codes.tolist() == [1, 2, 0, 2, 2 if rounding == "rne" else 3]
    wide = ns.Format("w", "table", 2, 2, 0, table=(-1.5e308, 1.5e308, 1.6e308, 1.7e308))
    assert ns.encode([1e308, -1e308, 1.0, -1.0, 1.66e308], wide).tolist() == [1, 0, 1, 0, 3]


@pytest.mark.parametrize("rounding", ["rne", "rtz", "sr"])
@pytest.mark.parametrize(
    "special", [None, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x7F800001]
)
def test_float32_into_float32_keeps_every_bit(rounding, special):
    words = np.array([0, 0x80000000, 1, 0x807FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800001], np.uint32)
    np.testing.assert_array_equal(
        ns.encode(words.view(np.float32), "float32", rounding=rounding), words
    )
    x = np.append(words, [] if special is None else np.uint32(special)).astype(np.uint32)
    for overflow in (SATURATE, SPECIAL):
        plan = workers.Plan(RNE, overflow, 64, 0, 0, 0, 0x7FC00000)
        pair = both(ns.get_format("float32"), plan, x.view(np.float32), start=0)
        np.testing.assert_array_equal(*pair)
        np.testing.assert_array_equal(pair[0][: words.size], words)


def doubles(f):
    """Values of a format, the middles between them, what is next to both; and the far ends."""
    values = f.values().astype(np.float64) if f.bits <= 16 else np.zeros(1)
    values = np.unique(values[np.isfinite(values)])[:: max(1, (1 << f.bits) >> 12)]
    middles = (values[1:] + values[:-1]) / 2
    near = np.concatenate([values, middles])
    beside = [np.nextafter(near, np.inf), np.nextafter(near, -np.inf)]
    little = [near * (1 + s * 2.0**-n) for s in (1, -1) for n in (20, 24, 25, 30, 40, 51)]
    ends = [
        5e-324, 2.0**-1022, 2.0**-150, 2.0**-149, 1.5 * 2.0**-149, 2.0**-126, 2.0**127,
        2.0**128 - 2.0**103, 2.0**128, 1e300, np.finfo(np.float64).max, np.inf, np.nan, 0.0,
    ]  # fmt: skip
    both_signs = np.array([*ends, *(-np.array(ends))])
    return np.concatenate([near, *beside, *little, both_signs])


@pytest.mark.parametrize("name", INTEGERS)
def test_numbers_that_wrap_keep_their_lowest_bits(name):
    f = ns.get_format(name)
    x = [16777217.0, 2.0**52 + 1, -(2.0**40) - 3, 2.0**30 + 0.5]
    want = [round(Fraction(v) * 2**f.bias) % (1 << f.bits) for v in x]
    codes = ns.encode(np.array(x), name, overflow="wrap").tolist()
    assert [code % (1 << f.bits) for code in codes] == want


@pytest.mark.parametrize("overflow", [SATURATE, SPECIAL])
@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS, "float16", "bfloat16", "q3.4", "uq0.8"])
def test_float64_by_way_of_rounding_to_odd(name, mode, overflow):
    f = ns.get_format(name)
    x = doubles(f)
    for nan_code in (f.nan_code if f.has_nan else 0, -1):
        plan = workers.Plan(mode, overflow, 64, 0, 0, 0, nan_code)
        worker = halves.by_odd(f, plan)
        if worker is None:
            continue
        got, want = np.zeros(x.size, f.code_dtype), np.zeros(x.size, f.code_dtype)
        found = worker(x, got, 3, workers.NO_RANDOM)
        there = exact.generic(f, plan)(x, want, 3, workers.NO_RANDOM)
        assert found[0] == there[0]
        assert found == there or not found[0]  # the place of no NaN says nothing
        number = ~np.isnan(x)
        np.testing.assert_array_equal(got[number], want[number])
        if nan_code >= 0:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bias", [149, 150, 200, 1000, -120, -126, -130, -900])
def test_fixed_point_beyond_float32_is_not_rounded_to_odd_on_the_way(bias):
    f = Format("own", "integer", 4, 3, bias)
    steps = np.array([-9, -3, -2.5, -1.25, -0.5, 0.25, 0.5, 1.5, 1.75, 2.25, 5, 100])
    want = [min(max(round(Fraction(v)), -8), 7) for v in steps]
    assert ns.encode(np.ldexp(steps, -bias), f).tolist() == want
