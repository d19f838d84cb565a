"""Bits do not depend on the rounding direction and the flush-to-zero switches of the caller."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import warnings
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import float_states
import llvmlite.binding as llvm
import numpy as np
import pytest
from float_battery import battery, digests, flat
from float_states import STATES, X86, state, under

import numsim as ns
from numsim import float_state
from numsim.float_state import PROGRAMS, State, known_floats, known_state, probe
from numsim.kernels import jit
from numsim.kernels.ir import simd

pytestmark = pytest.mark.skipif(not float_states.KNOWN, reason="no state to set on this processor")

BATTERY = Path(__file__).parent / "float_battery.py"
each_state = pytest.mark.parametrize("word", STATES.values(), ids=STATES)


@pytest.fixture(scope="module")
def results() -> dict[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: flat(call()) for name, call in battery().items()}


@each_state
@pytest.mark.parametrize("name", sorted(battery()))
def test_same_bits_under_any_state_of_the_caller(name, word, results):
    call = battery()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with under(word):
            found, left = call(), state()
    assert left == word & 0xFFFFFFFF
    assert flat(found) == results[name]


@pytest.mark.parametrize("name", ["all", *(["ftz_daz"] if X86 else [])])
def test_same_bits_where_the_state_was_set_before_the_import(name):
    done = subprocess.run(
        [sys.executable, str(BATTERY), name], capture_output=True, text=True, check=True
    )
    found = ast.literal_eval(done.stdout)
    assert found.pop("state") == STATES[name]
    assert found == digests()


def test_values_by_hand_under_flush_to_zero_and_rounding_up():
    # 0x0000f2b9 is 62137 * 2^-149; bfloat16 keeps 8 bits: 62137 / 2^16 = 0.948 rounds to one unit
    # of 2^-133; 1 + 2^-24 is a tie that stays at 1, 1 + 3 * 2^-24 one that goes up
    x = np.array([62137, 1], np.uint32).view(np.float32)
    near = np.array([1 + 2.0**-24, 1 + 3 * 2.0**-24])
    with under(STATES["all"]):
        coded = ns.encode(x, "bfloat16")
        single = ns.encode(near, "float32")
        one = ns.decode(np.array([1], np.uint16), "bfloat16")
    assert coded.tolist() == [1, 0]
    assert single.tolist() == [0x3F800000, 0x3F800002]
    assert one.view(np.uint32).tolist() == [1 << 16]


@each_state
def test_threads_of_the_pool_have_the_known_state(word):
    bits = np.arange(1 << 19, dtype=np.uint32)  # subnormal float32, enough for two threads
    x = bits.view(np.float32)
    with jit.using_threads(2) as possible:
        if not possible:
            pytest.skip("one thread only")
        pool = jit._pool(1)
        pool.submit(float_states.put, word).result()
        try:
            got = ns.cast(x, "tfloat32", rounding="rtz")
            left = pool.submit(state).result()
        finally:
            pool.submit(float_states.put, 0x1F80 if X86 else 0).result()
    assert left == word
    assert np.array_equal(got.view(np.uint32), bits & np.uint32(0xFFFFE000))


@each_state
def test_an_error_leaves_the_state_of_the_caller(word):
    a = ns.QTensor.from_codes(np.full((1, 64), 127), "int8")
    unit = ns.get_target("ideal.int", acc_bits=16, overflow="raise")
    with under(word):
        with pytest.raises(ns.NumsimError):
            ns.encode([np.nan], "float4_e2m1fn")
        after_encode = state()
        with pytest.raises(ns.NumsimError):
            ns.matmul(a, a.T, target=unit)
        after_matmul = state()
        with pytest.raises(KeyError), known_state():
            raise KeyError
        assert (after_encode, after_matmul, state()) == (word, word, word)


@pytest.mark.parametrize("path", simd.PATHS)
def test_kernels_that_cut_toward_zero_put_the_rounding_back(path):
    a = ns.QTensor.from_codes(np.arange(512).reshape(8, 64) % 120, "e4m3")
    with simd.force(path):
        for unit in ("nvidia.hopper.wgmma", "nvidia.ada.mma", "nvidia.ampere.mma"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                q = a if "ampere" not in unit else ns.QTensor.from_codes(a.codes, "float16")
                ns.matmul(q, q.T, target=unit)
            assert state() == (0x1F80 if X86 else 0)


def test_a_call_within_a_call_keeps_the_known_state_until_the_outer_ends():
    seen = []

    @known_floats
    def inner() -> None:
        seen.append(state())

    @known_floats
    def outer() -> None:
        inner()
        seen.append(state())

    with under(STATES["up"]):
        outer()
        seen.append(state())
    assert seen == [*[0x1F80 if X86 else 0] * 2, STATES["up"]]


def test_generators_are_refused_since_they_would_leak_the_state():
    def generator() -> Any:
        yield 1

    with pytest.raises(TypeError, match="is a generator; decorate what it calls"):
        known_floats(generator)


@each_state
def test_the_probe_finds_every_state_that_changes_bits(word):
    assert probe() == -1
    with under(word):
        assert probe() == 0


def test_without_a_state_to_set_only_wrong_arithmetic_is_refused(monkeypatch):
    elsewhere = State(probe, float_state._refuse, lambda state: None)
    monkeypatch.setattr(float_state, "_NOW", elsewhere)
    monkeypatch.setattr(float_state, "_unknown", probe)
    assert ns.encode([1.0], "e4m3").tolist() == [0x38]
    with under(STATES["ftz"]), pytest.raises(ns.NumsimError, match="flushes subnormal numbers"):
        ns.encode([1.0], "e4m3")


def test_the_state_of_aarch64_is_read_and_written():
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM makes no code for AArch64")
    module = llvm.parse_assembly(PROGRAMS["aarch64"])
    text = target.create_target_machine().emit_assembly(module).lower()
    assert "mrs\tx8, fpcr" in text
    assert "msr\tfpcr, x0" in text
    assert "msr\tfpcr, xzr" in text


def test_a_warning_names_the_line_of_the_caller():
    a = ns.QTensor.from_codes([[1, 2]], "int8")
    ns.targets.ops._WARNED.discard("tpu.mxu_int8")
    with pytest.warns(ns.UnvalidatedWarning) as caught:
        ns.matmul(a, a.T, target="tpu.mxu_int8")
    assert caught[0].filename == __file__


# What computes nothing: data, and what looks data up
EXEMPT = {
    "Arch", "CONSTANTS", "Case", "Check", "Past", "Params", "Price", "Row", "SiliconRow",
    "Stochastic", "SweepSpec", "TextTools", "Unit",
    "bundled_model", "check_silicon", "formats_to_check", "get_stochastic", "golden_folder", "Page",
    "load_text_tools", "rule_for", "list_recipes", "is_ambiguous", "kept_format", "format_name",
    "recipe_name", "checkable", "list_lines",
    # layers and states: data alone
    "Activation", "Attention", "Conv1d", "Conv2d", "DelayedState", "Embedding", "Fit", "Flatten",
    "GRU", "IntegerTensor", "LSTM", "Last", "LayerNorm", "Linear", "Lost", "LossScaleState", "Mean",
    "Network", "RMSNorm",
    "Sequential", "State", "Tape",
}  # fmt: skip
NO_ARITHMETIC = ("__array_ufunc__", "__hash__", "__reduce__", "__getstate__", "__annotate_func__")
PACKAGES = (
    "formats", "quant", "targets", "models", "nn", "train", "sweep", "cost", "explain", "verify",
    "report", "operators", "probe", "diff",
)  # fmt: skip


def _public() -> dict[str, Any]:
    found = {f"numsim.{name}": getattr(ns, name) for name in ns.__all__}
    for package in PACKAGES:
        module = import_module(f"numsim.{package}")
        found |= {f"numsim.{package}.{name}": getattr(module, name) for name in module.__all__}
    for module in (import_module("numsim.metrics"), import_module("numsim.number_line")):
        found |= {
            f"{module.__name__}.{name}": item
            for name, item in vars(module).items()
            if inspect.isfunction(item)
            and item.__module__ == module.__name__
            and not name.startswith("_")
        }
    return found


def _entries(name: str, item: Any) -> dict[str, Any]:
    """Return the functions that a public name offers."""
    if inspect.isfunction(item):
        return {name: item}
    if not inspect.isclass(item) or issubclass(item, BaseException):
        return {}
    found = {}
    for key, value in vars(item).items():
        if isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, cached_property):
            value = value.func
        if not inspect.isfunction(value) or (key.startswith("_") and key[:2] != "__"):
            continue
        if isinstance(vars(item)[key], property) and key in float_state.PLAIN:
            continue
        if key == "__post_init__" and "__init__" in vars(item):
            continue  # which calls it, and is covered
        by_hand = (
            inspect.unwrap(value).__code__.co_filename == sys.modules[item.__module__].__file__
        )
        if key in float_state.ENTRIES or (by_hand and key not in NO_ARITHMETIC):
            found[f"{name}.{key}"] = value
    return found


def test_everything_public_is_covered():
    missing = []
    for name, item in _public().items():
        if name.rpartition(".")[2] in EXEMPT or isinstance(item, ModuleType):
            continue
        for entry, function in _entries(name, item).items():
            if function.__code__.co_filename != float_state.__file__:
                missing.append(entry)
    assert not missing, f"decorate with numsim.float_state.known_floats: {', '.join(missing)}"


def test_processes_of_a_sweep_are_covered():
    from numsim import processes
    from numsim.sweep import cluster

    for work in (processes._start, processes._work, cluster._work):
        assert work.__code__.co_filename == float_state.__file__
