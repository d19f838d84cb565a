"""Golden vectors for RTL: read back as a test bench would, and compared with matmul."""

from __future__ import annotations

import json
import re
import tomllib

import numpy as np
import pytest
from every_rule import every_rule, random_codes

import numsim as ns
from numsim.quant.words import BlockWords, from_block_words
from numsim.targets.types import Target

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")


def read_hex(file):
    """(format, bits, words) of a $readmemh file, with the width of every word checked."""
    head, *lines = file.read_text(encoding="ascii").splitlines()
    name, fmt, bits, shape = re.fullmatch(
        r"// (\w+): (\w+), (\d+) bits, shape (.*), row-major", head
    ).groups()
    assert file.stem == name
    digits = -(-int(bits) // 4)
    assert all(re.fullmatch(f"[0-9a-f]{{{digits}}}", line) for line in lines)
    words = np.array([int(line, 16) for line in lines], np.uint64)
    assert words.max(initial=0) < 2 ** int(bits)
    return fmt, int(bits), words.reshape([int(n) for n in shape.split(" x ")])


def exported(folder, a, b, **arguments):
    files = ns.export_vectors(folder, a, b, **arguments)
    assert all(f.is_file() for f in files)
    read = {f.stem: read_hex(f) for f in files[:-1]}
    with np.load(files[-1]) as npz:
        meta = json.loads(str(npz["meta"]))
        assert set(npz.files) == {*read, "meta"}
        for name, (fmt, bits, words) in read.items():
            assert meta["arrays"][name] == {"format": fmt, "bits": bits, "shape": list(words.shape)}
            np.testing.assert_array_equal(words, npz[name].astype(np.uint64))
            assert npz[name].dtype.kind == "u"
            fits = [n for n in (8, 16, 32, 64) if n >= bits]
            assert npz[name].dtype.itemsize * 8 == fits[0]  # the smallest that has the width
    return read, meta


def bits_of(array):
    return np.ascontiguousarray(array).view(f"u{array.itemsize}").astype(np.uint64)


@pytest.mark.parametrize(("target", "fa", "fb", "out"), list(every_rule()))
def test_every_rule(target, fa, fb, out, tmp_path):
    rng = np.random.default_rng(5)
    a, b = (random_codes(f, s, rng, wild=False) for f, s in ((fa, (2, 40)), (fb, (40, 3))))
    d = ns.matmul(a, b, target=target, out_format=out)
    read, meta = exported(tmp_path, a, b, target=target, out_format=out)
    np.testing.assert_array_equal(read["d"][2], bits_of(d))
    for name, q in (("a", a), ("b", b)):
        fmt, bits, words = read[name]
        assert (fmt, bits) == (q.fmt.name, q.fmt.bits)
        np.testing.assert_array_equal(words, q.codes.astype(np.int64) & (2**bits - 1))
    fmt, bits, steps = read["accumulator"]
    assert steps.shape == (len(meta["steps"]), 1, 2, 3)
    unit = Target.from_tables(tomllib.loads(meta["target"]))
    assert unit == ns.get_target(target)
    if unit.promote_every is None and fmt == str(d.dtype):
        np.testing.assert_array_equal(steps[-1, 0], read["d"][2])
    assert sorted(k for step in meta["steps"] for k in step["k"]) == list(range(40))


def test_integer_accumulator_words(tmp_path):
    a = ns.QTensor.from_codes([[100, -100, 100]], "int8")
    b = ns.QTensor.from_codes([[100], [100], [100]], "int8")
    unit = ns.get_target("ideal.int", acc_bits=15)
    read, _ = exported(tmp_path, a, b, target=unit, c=np.array([[-1]]))
    assert read["accumulator"][:2] == ("int15", 15)
    assert read["accumulator"][2].ravel().tolist() == [9999, 2**15 - 1, 9999]
    assert read["c"][:2] == ("int15", 15)
    assert read["c"][2].item() == 2**15 - 1
    assert read["d"][:2] == ("int32", 32)
    assert read["d"][2].item() == 9999


def test_narrow_float_accumulator_words(tmp_path):
    a = ns.QTensor.from_codes(ns.encode([[8.0, 0.5, 1.0, 2.0]], "float8_e5m2"), "float8_e5m2")
    ones = ns.QTensor.from_codes(ns.encode(np.ones((4, 1)), "float8_e5m2"), "float8_e5m2")
    unit = ns.get_target("ideal.mac", acc_format="float_e5m6")
    read, _ = exported(tmp_path, a, ones, target=unit)
    fmt, bits, words = read["accumulator"]
    assert (fmt, bits) == ("float_e5m6", 12)
    assert ns.decode(words.astype(np.uint16), fmt).ravel().tolist() == [8, 8.5, 9.5, 11.5]


def test_half_output_of_a_wide_accumulator(tmp_path):
    a = ns.QTensor.from_codes(ns.encode([[2048.0, 0.5, 0.5]], "float16"), "float16")
    ones = ns.QTensor.from_codes(ns.encode(np.ones((3, 1)), "float16"), "float16")
    read, _ = exported(tmp_path, a, ones, target="ideal.fp32", out_format="float16")
    assert read["accumulator"][:2] == ("float32", 32)
    assert read["accumulator"][2].astype("u4").view("f4").ravel().tolist() == [2048, 2048.5, 2049]
    assert read["d"][2].item() == np.float16(2048).view("u2")


def test_promoted_and_split_sums(tmp_path):
    rng = np.random.default_rng(0)
    a, b = (random_codes("float8_e4m3fn", s, rng, wild=False) for s in ((2, 256), (256, 2)))
    unit = ns.get_target("nvidia.hopper.wgmma", promote_every=64, split_k=2, split_order="serial")
    read, meta = exported(tmp_path, a, b, target=unit)
    d = ns.matmul(a, b, target=unit)
    np.testing.assert_array_equal(read["sums"][2][-1, 0], bits_of(d))
    np.testing.assert_array_equal(read["d"][2], bits_of(d))
    assert [s["chain"] for s in meta["steps"]] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("changes", [{}, {"promote_every": 64}])
@pytest.mark.parametrize(
    ("target", "quant"),
    [("nvidia.blackwell.tcgen05", "nvfp4"), ("nvidia.blackwell.tcgen05", "mxfp8_e4m3"),
     ("nvidia.ada.mma", "mxfp8_e4m3"), ("ideal.fp32", "nvfp4")],
)  # fmt: skip
def test_block_scales(target, quant, changes, tmp_path):
    rng = np.random.default_rng(0)
    a = ns.quantize(rng.normal(size=(2, 128)), quant)
    b = ns.quantize(rng.normal(size=(128, 3)), quant, axis=0)
    unit = ns.get_target(target, **changes)
    read, meta = exported(tmp_path, a, b, target=unit)
    np.testing.assert_array_equal(read["d"][2], bits_of(ns.matmul(a, b, target=unit)))
    assert read["scale_a"][0] == a.scale_format.name
    np.testing.assert_array_equal(read["scale_a"][2], a.scale_codes)
    assert sorted(k for step in meta["steps"] for k in step["k"]) == list(range(128))


def signed(words, bits):
    words = words.astype(np.int64)
    return words - ((words >> (bits - 1)) << bits)


@pytest.mark.parametrize("changes", [{}, {"promote_every": 16}, {"split_k": 2}])
@pytest.mark.parametrize("how", [{}, {"granularity": "per_token"}, {"block": 32}], ids=str)
def test_zero_points_of_an_integer_unit(how, changes, tmp_path):
    """Steps add codes; what follows takes the zero points away, here in Python's integers."""
    rng = np.random.default_rng(3)
    a = ns.quantize(rng.normal(1, 2, (2, 96)), ns.Quant("uint8", zero_point=True, **how))
    b = ns.quantize(rng.normal(-1, 1, (96, 3)), ns.Quant("int8", zero_point=True, **how), axis=0)
    unit = ns.get_target("ideal.int", **changes)
    read, meta = exported(tmp_path, a, b, target=unit)
    np.testing.assert_array_equal(read["d"][2], bits_of(ns.matmul(a, b, target=unit)))
    for name, q in (("zero_point_a", a), ("zero_point_b", b)):
        assert read[name][:2] == ("int32", 32)
        np.testing.assert_array_equal(signed(read[name][2], 32).ravel(), q.zero_point.ravel())
    qa, qb = a.codes.astype(object), b.codes.astype(object)
    za = np.broadcast_to(a.element_zero_point(), a.shape).astype(object)
    zb = np.broadcast_to(b.element_zero_point(), b.shape).astype(object)
    size = how.get("block", 96)
    want = [(qa - za)[:, k : k + size] @ (qb - zb)[k : k + size] for k in range(0, 96, size)]
    assert read["corrected"][:2] == ("int32", 32)
    np.testing.assert_array_equal(signed(read["corrected"][2], 32)[:, 0], np.array(want, int))
    steps, totals = signed(read["accumulator"][2], 32), {}
    for step, after in zip(meta["steps"], steps, strict=True):
        before = totals.get(step["chain"], 0)
        totals[step["chain"]] = before + qa[:, step["k"]] @ qb[step["k"]]
        np.testing.assert_array_equal(after[0], totals[step["chain"]].astype(int))
    if "block" not in how:
        scale = np.asarray(a.scale * b.scale, np.float32)
        last = signed(read["corrected"][2], 32)[0, 0].astype(np.float32)
        np.testing.assert_array_equal(read["d"][2], bits_of((last * scale).astype(np.float32)))


def test_zero_points_of_a_unit_of_floats(tmp_path):
    """It takes codes less zero points; the files have both."""
    a = ns.QTensor.from_codes([[3, 200, 7]], "uint8", zero_point=5, scale=0.5)
    b = ns.QTensor.from_codes([[1], [-2], [3]], "int8", zero_point=[[1]])
    read, _ = exported(tmp_path, a, b, target="ideal.fp32")
    assert read["a"][2].tolist() == [[3, 200, 7]]
    assert read["zero_point_a"][2].tolist() == [5]
    assert "corrected" not in read
    steps = read["accumulator"][2].astype("u4").view("f4").ravel()
    assert steps.tolist() == [0, -585, -581]  # -2 * 0, 195 * -3, 2 * 2
    assert read["d"][2].astype("u4").view("f4").item() == -290.5


@pytest.mark.parametrize("recipe", ["if4", "hif4"])
def test_blocks_of_two_kinds_are_stored_words(recipe, tmp_path):
    rng = np.random.default_rng(7)
    a = ns.quantize(rng.standard_t(3, (2, 192)), recipe)
    b = ns.quantize(rng.standard_t(3, (192, 3)), recipe, axis=0)
    read, _ = exported(tmp_path, a, b, target="ideal.fp32")
    np.testing.assert_array_equal(read["d"][2], bits_of(ns.matmul(a, b, target="ideal.fp32")))
    for name, q in (("a", a), ("b", b.T)):
        kind, bits, elements = read[name]
        assert (kind, bits) == (recipe, 4)
        turned = (lambda x: x) if name == "a" else np.transpose
        scales = turned(read[f"scale_{name}"][2]).astype(np.uint8)
        words = BlockWords(turned(elements).astype(np.uint8), scales)
        if recipe == "hif4":
            levels = turned(read[f"levels_{name}"][2])
            assert read[f"levels_{name}"][:2] == ("levels", 24)
            words = words._replace(level_2=levels & 0xFF, level_3=levels >> 8)
        back = from_block_words(words, recipe, tensor_scale=q.tensor_scale)
        np.testing.assert_array_equal(back.dequantize(), q.dequantize())


def test_bad_input_writes_nothing(tmp_path):
    a = ns.quantize(np.ones((2, 4)), "int8")
    with pytest.raises(ns.UnsupportedError, match="does not multiply"):
        ns.export_vectors(tmp_path / "x", a, a.T, target="nvidia.volta.mma")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ns.NumsimError, match="cannot write"):
        ns.export_vectors(tmp_path / "file", a, a.T, target="ideal.int")
