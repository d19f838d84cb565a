"""Arrays of other libraries go in, quantised tensors come out as arrays, without torch."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import numsim as ns

X = np.float32([[1.0, -2.5, 0.1], [300.0, -0.0, 1e-9]])


class Dlpack:
    """An array that has `__dlpack__` and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Arrayed:
    """An array that has `__array__` and nothing else."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


class Tensor:
    """What numsim uses of a torch tensor, with the ways in which NumPy cannot take one."""

    def __init__(self, array, dtype, *, grad=False, device="cpu"):
        self.array, self.dtype, self.grad, self.device = array, dtype, grad, device

    def detach(self):
        return Tensor(self.array, self.dtype, device=self.device)

    def cpu(self):
        return Tensor(self.array, self.dtype, grad=self.grad)

    def view(self, dtype):
        assert not self.grad
        name = repr(dtype).removeprefix("torch.")
        return Tensor(self.array.view(name), dtype, device=self.device)

    def __array__(self, dtype=None, copy=None):
        if self.grad or self.device != "cpu" or self.array.dtype.kind == "V":
            raise TypeError("can't convert")
        return self.array


def torch_dtype(name):
    kind = type("dtype", (), {"__repr__": lambda self: f"torch.{name}", "__module__": "torch"})
    return kind()


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("torch")
    for name in ("int8", "int16", "uint8"):
        setattr(module, name, torch_dtype(name))
    monkeypatch.setitem(sys.modules, "torch", module)


@pytest.mark.parametrize("wrap", [Dlpack, Arrayed])
def test_anything_with_dlpack_or_array_enters(wrap):
    for dtype in (np.float32, np.float64, np.float16, np.int32):
        x = X.astype(dtype)
        assert np.array_equal(ns.encode(wrap(x), "e4m3"), ns.encode(x, "e4m3"))
        assert np.array_equal(ns.cast(wrap(x.T), "int8"), ns.cast(x.T, "int8"))
        q, want = ns.quantize(wrap(x), "int8"), ns.quantize(x, "int8")
        assert np.array_equal(q.codes, want.codes)
        assert q.scale == want.scale
    codes = np.uint8([0x38, 0x7E])
    assert np.array_equal(ns.decode(wrap(codes), "e4m3"), [1.0, 448.0])
    assert ns.QTensor.from_codes(wrap(codes), "e4m3", scale=wrap(np.float32([2.0]))).scale == 2.0
    assert ns.metrics.max_abs(wrap(X), X) == 0.0


@pytest.mark.parametrize(
    "name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e8m0fnu"]
)
@pytest.mark.parametrize("how", [{}, {"grad": True}, {"device": "cuda:0"}], ids=str)
def test_tensors_of_types_that_numpy_has_not(fake, name, how):
    dtype = getattr(ml_dtypes, name)
    x = np.arange(1 << 8 * np.dtype(dtype).itemsize)
    x = x.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    got = ns.encode(Tensor(x, torch_dtype(name), **how), "float32", nan="payload")
    assert np.array_equal(got, ns.encode(x, "float32", nan="payload"))


def test_a_tensor_that_needs_a_gradient_or_lies_on_a_device(fake):
    for how in ({"grad": True}, {"device": "cuda:0"}):
        got = ns.quantize(Tensor(X, torch_dtype("float32"), **how), "e4m3")
        assert np.array_equal(got.codes, ns.quantize(X, "e4m3").codes)


@pytest.mark.parametrize(
    ("name", "words"),
    [("qint8", "x.dequantize"), ("float4_e2m1fn_x2", "two numbers in a byte")],
)
def test_tensors_that_are_no_numbers_are_refused(fake, name, words):
    with pytest.raises(ns.NumsimError, match=words):
        ns.encode(Tensor(np.zeros(2, np.uint8), torch_dtype(name)), "e4m3")


def test_an_array_that_cannot_be_read_is_one_sentence():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("no\ndata")

    for call in (lambda x: ns.encode(x, "e4m3"), lambda x: ns.quantize(x, "e4m3")):
        with pytest.raises(ns.NumsimError, match=r"makes no array \(no data\)") as caught:
            call(Broken())
        assert "\n" not in str(caught.value)


def test_torch_is_not_imported():
    code = "import sys, numsim as ns; ns.quantize([1.0], 'e4m3'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "name",
    ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
     "float8_e5m2fnuz", "float64", "int8", "uint8", "int64"],
)  # fmt: skip
def test_torch_itself(name):
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    t = torch.tensor([[1.0, 2.5, 0.125], [30.0, 0.0, 7.0]]).to(dtype)
    want = ns.encode(t.double().numpy(), "float32")
    assert np.array_equal(ns.encode(t, "float32"), want)
    assert np.array_equal(ns.encode(t.T, "float32"), want.T)
    assert ns.cast(t[0, 0], "e4m3") == 1.0
    if t.is_floating_point():
        assert np.array_equal(ns.encode(t.clone().requires_grad_(), "float32"), want)
    if name not in ("float64", "int64"):
        assert ns.get_format(dtype).name == name


# --- quantised tensors as arrays


def test_asarray_is_the_dequantised_array():
    q = ns.quantize(X, "int8", granularity="per_token")
    assert np.array_equal(np.asarray(q), q.dequantize())
    assert np.asarray(q).dtype == np.float32
    assert np.asarray(q, np.float64).dtype == np.float64
    assert np.array_equal(np.array(q), q.dequantize())
    assert np.array_equal(q + 1 if hasattr(q, "__add__") else np.add(q, 1), q.dequantize() + 1)
    assert np.array_equal(np.ones(3, np.float32) * q, q.dequantize())
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(q, copy=False)


def test_products_by_operator_ask_for_a_unit():
    q = ns.quantize(np.ones((2, 2)), "int8")
    for call in (
        lambda: q @ q, lambda: q @ np.ones((2, 2)), lambda: np.ones((2, 2)) @ q,
        lambda: np.matmul(q, q),
    ):  # fmt: skip
        with pytest.raises(ns.NumsimError, match=r"numsim.matmul\(a, b, target="):
            call()


def test_sizes_of_a_quantised_tensor():
    q = ns.quantize(np.ones((4, 64)), "int8")
    assert (len(q), q.ndim, q.shape) == (4, 2, (4, 64))
    assert q.nbytes == 4 * 64 + 4
    assert ns.quantize(np.ones((4, 64)), "mxfp4").nbytes == 4 * 32 + 4 * 2
    assert ns.quantize(np.ones((3, 3)), "q3.4").nbytes == 9
    assert ns.quantize(np.ones((4, 64)), "nvfp4").nbytes == 4 * 32 + 4 * 4 + 4
    with pytest.raises(TypeError):
        len(ns.quantize(1.0, "int8"))


RULES = ("int8", ns.Quant("int8", "per_token"), "mxfp4", "nvfp4", ns.Quant("e4m3", block=(2, 32)),
         "q3.4")  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(
    "key", [np.s_[0], np.s_[1:], np.s_[-1, 2:4], np.s_[...], np.s_[:, 0:2, 32:], np.s_[:0],
            np.s_[1, ..., 32:64], np.s_[5:]], ids=str
)  # fmt: skip
def test_slices_keep_scales_with_their_codes(rule, key):
    x = np.random.default_rng(3).normal(size=(2, 6, 80)).astype(np.float32)
    q = ns.quantize(x, rule)
    part = q[key]
    assert np.array_equal(part.codes, q.codes[key])
    assert np.array_equal(part.dequantize(), q.dequantize()[key])
    assert part.fmt == q.fmt
    if part.codes.size and part.ndim >= 2:
        assert np.array_equal(np.asarray(part.T), np.asarray(part).swapaxes(-1, -2))


def test_slices_of_transposed_and_wrapped_tensors():
    x = np.random.default_rng(4).normal(size=(8, 64)).astype(np.float32)
    q = ns.quantize(x, "mxfp8_e4m3").T  # blocks of 32 along axis 0
    assert np.array_equal(np.asarray(q[32:, 3]), np.asarray(q)[32:, 3])
    one = ns.QTensor.from_codes([[1, 2], [3, 4]], "int8", scale=np.float32([0.5, 2.0]))
    assert np.asarray(one[0]).tolist() == [0.5, 4.0]
    assert np.asarray(one[:, 1]).tolist() == [4.0, 8.0]
    assert ns.QTensor.from_codes([[1, 2]], "int8")[0].scale is None
    assert [row.codes.tolist() for row in one] == [[1, 2], [3, 4]]  # iteration ends


def test_a_slice_multiplies_as_a_tensor_of_its_own():
    x = np.random.default_rng(5).normal(size=(4, 64)).astype(np.float32)
    q = ns.quantize(x, "mxfp8_e4m3")
    q.values()  # what the whole keeps is not that of a part
    whole = ns.matmul(q, q.T, target="nvidia.blackwell.tcgen05")
    part = ns.matmul(q[1:3], q.T, target="nvidia.blackwell.tcgen05")
    assert np.array_equal(part, whole[1:3])


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        (np.s_[:, 3:], ns.NumsimError, "multiples of 32"),
        (np.s_[:, 0], ns.NumsimError, "whole blocks"),
        (np.s_[:, ::2], ns.NumsimError, "whole blocks"),
        (np.s_[[0, 1]], ns.NumsimError, "integers and slices"),
        (np.s_[None], ns.NumsimError, "integers and slices"),
        (np.s_[True], ns.NumsimError, "integers and slices"),
        (np.s_[9], IndexError, "out of bounds"),
        (np.s_[0, 0:32, 0], IndexError, "at most 2"),
    ],
    ids=str,
)
def test_an_index_that_would_lose_scales_is_refused(key, error, words):
    q = ns.quantize(np.ones((2, 64)), "mxfp8_e4m3")
    with pytest.raises(error, match=words):
        q[key]


# --- quantize


def test_fields_of_a_quant_as_keywords():
    x = np.ones((4, 64), np.float32)
    assert ns.quantize(x, "e4m3", granularity="per_token").quant == ns.Quant("e4m3", "per_token")
    assert ns.quantize(x, "e4m3", block=16).quant == ns.Quant("e4m3", block=16)
    assert ns.quantize(x, "mxfp4", block=16).quant == replace(ns.quant.as_quant("mxfp4"), block=16)
    assert ns.quantize(x, "e4m3", block=32, scale_format="e8m0").quant.scale_rule == "floor"
    ceil = ns.Quant("e4m3", scale_format="pow2", scale_rule="ceil")
    assert ns.quantize(x, ceil, scale_format="e8m0").quant.scale_rule == "ceil"
    assert ns.quantize(x, ceil, scale_format="float32").quant.scale_rule == "amax"
    assert ns.quantize(x, "mxfp4", granularity="per_tensor").quant.block is None
    assert ns.quantize(x, "int8", rounding="rtz", overflow="wrap").quant.rounding == "rtz"
    with pytest.raises(ns.NumsimError, match="granularity is one of"):
        ns.quantize(x, "e4m3", granularity="per_row")


UNSIGNED = ("uint8", "uint4", "uq0.8", "p3109_k8p4uf", ns.Format("up", "table", 1, 1, 0,
            table=(0.0, 1.0)))  # fmt: skip


@pytest.mark.parametrize("fmt", UNSIGNED, ids=str)
def test_unsigned_formats_refuse_negative_numbers(fmt):
    with pytest.raises(
        ns.NumsimError, match=r"no negative numbers; 2 of 4 values \(50 %\).*\(1,\)"
    ):
        ns.quantize([0.5, -1.0, -0.0, -2.0], fmt)
    with pytest.raises(ns.NumsimError, match="4 of 4 values"):
        ns.quantize(ml_dtypes.bfloat16(-1) * np.ones(4, ml_dtypes.bfloat16), fmt)
    assert np.all(np.asarray(ns.quantize([0.5, 1.0, -0.0], fmt)) >= 0)


def test_unsigned_integers_wrap_where_that_is_asked():
    quant = ns.Quant("uint8", "none", overflow="wrap")
    assert ns.quantize([-1.0, -256.0], quant).codes.tolist() == [255, 0]


@pytest.mark.parametrize(
    ("amax", "scale"), [(448.0, 1.0), (224.0, 0.5), (449.0, 2.0), (7.0, 2.0**-6), (447.5, 1.0)]
)
def test_rceil_of_an_amax_that_is_max_times_a_power_of_two_clips_nothing(amax, scale):
    # the smallest power of two with amax / scale <= 448 of E4M3
    for scales in ("pow2", "float8_e8m0fnu"):
        quant = ns.Quant("e4m3", scale_format=scales, scale_rule="rceil")
        assert ns.quantize(np.float32([amax, -1.0]), quant).scale == scale


@pytest.mark.parametrize(
    ("rule", "amax", "scale"),
    [
        ("floor", 448.0, 1.0),  # 2**(8 - 8)
        ("ceil", 448.0, 2.0),  # log2 448 is above 8: 2**(9 - 8)
        ("ceil", 256.0, 1.0),
        ("even", 448.0, 1.0),  # 1.75 stays: less than 1.9375
        ("even", 496.0, 2.0),  # 1.9375 = 2 - 2**-4 carries
        ("even", 495.0, 1.0),
    ],
)
def test_powers_of_two_at_their_edges(rule, amax, scale):
    quant = ns.Quant("e4m3", scale_format="pow2", scale_rule=rule)
    assert ns.quantize(np.float32([amax]), quant).scale == scale


@pytest.mark.parametrize("rule", ["amax", "mse", "kl", "percentile:99"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_token"])
@pytest.mark.parametrize("shape", [(1, 0), (0, 1), (0,), (2, 0, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("axis", [-1, 0])
def test_empty_arrays_under_every_scale_rule(rule, granularity, shape, axis):
    q = ns.quantize(np.zeros(shape, np.float32), ns.Quant("int8", granularity, scale_rule=rule),
                    axis=axis)  # fmt: skip
    whole = granularity == "per_tensor"
    want = () if whole else tuple(1 if i == axis % len(shape) else n for i, n in enumerate(shape))
    assert q.scale.shape == want
    assert q.scale.dtype == np.float32
    assert q.dequantize().shape == shape


def test_a_block_longer_than_the_axis_takes_no_memory():
    import tracemalloc

    x = np.arange(128, dtype=np.float32)
    tracemalloc.start()
    for block in (129, 1 << 29, (1 << 29, 1 << 30)):
        shaped = x.reshape(2, 64) if isinstance(block, tuple) else x
        q = ns.quantize(shaped, ns.Quant("int8", block=block))
        assert q.scale.size == 1
        assert np.array_equal(q.codes, ns.quantize(shaped, "int8").codes)
        assert np.array_equal(np.asarray(q), np.asarray(ns.quantize(shaped, "int8")))
    one = ns.QTensor.from_codes(np.ones(8, int), "int8", scale=[2.0], block=1 << 30)
    assert one.dequantize().tolist() == [2.0] * 8
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    with pytest.raises(ns.NumsimError, match="below 2\\*\\*31"):
        ns.Quant("int8", block=1 << 62)


@pytest.mark.parametrize("quant", ["e4m3", "mxfp4", "nvfp4", "uint8", "q3.4"])
def test_bytes_without_a_type_are_no_numbers(quant):
    for given in (np.zeros(3, "V3"), np.zeros(2, [("a", "f4")])):
        with pytest.raises(ns.NumsimError, match="quantize: "):
            ns.quantize(given, quant)
    with pytest.raises(ns.NumsimError, match="from_codes: scale is a real number"):
        ns.QTensor.from_codes([[1, 2]], "e4m3", scale=[10**400])
