"""Small vectors of every unit, made by tests/golden/make_units.py: they need no recording."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import numsim as ns
from numsim.targets.plan import resolve

HERE = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(HERE))

import make_units  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
FLOAT = {"float32": np.float32, "float16": np.float16}


def read():
    """Every group of the file with its arrays by name, [cases, ...]."""
    with np.load(HERE / "units.npz") as file:
        words = {name: file[name] for name in make_units.NAMES}
        found = json.loads(str(file["meta"]))
    at = dict.fromkeys(words, 0)
    for g in found:
        blocks = g["k"] // g["block"] if g["block"] else 0
        shapes = {
            "A": (2, g["k"]), "B": (g["k"], 2), "C": (2, 2), "D": (2, 2), "SA": (2, blocks),
            "SB": (blocks, 2),
        }  # fmt: skip
        cases = [{} for _ in range(g["cases"])]
        for case in cases:
            for name, shape in shapes.items():
                size = shape[0] * shape[1]
                case[name] = words[name][at[name] : at[name] + size].reshape(shape)
                at[name] += size
        yield g, cases
    assert at == {name: len(array) for name, array in words.items()}


GROUPS = list(read())


def named(group):
    changes = "".join(f",{k}={v}" for k, v in group["changes"].items())
    scale = f"-{group['scale']}/{group['block']}" if group["scale"] else ""
    return f"{group['target']}{changes}-{group['a']}-{group['b']}-{group['out']}{scale}"


def tensor(words, name, scale, block, codes, axis):
    fmt = ns.get_format(name)
    words = words.view(np.int32) if fmt.kind == "integer" and fmt.signed else words
    scales = {"scale_codes": codes, "scale_format": scale, "block": block, "axis": axis}
    return ns.QTensor.from_codes(words.astype(fmt.code_dtype), fmt, **(scales if block else {}))


def operands(g, case):
    a = tensor(case["A"], g["a"], g["scale"], g["block"], case["SA"], -1)
    b = tensor(case["B"], g["b"], g["scale"], g["block"], case["SB"], -2)
    if g["out"] == "int32":
        return a, b, case["C"].view(np.int32), None
    return a, b, case["C"].astype(f"u{FLOAT[g['out']]().itemsize}").view(FLOAT[g["out"]]), g["out"]


@pytest.mark.parametrize(("g", "cases"), [pytest.param(*x, id=named(x[0])) for x in GROUPS])
def test_vectors_of_units(g, cases):
    unit = ns.get_target(g["target"], **g["changes"])
    for i, case in enumerate(cases):
        a, b, c, out = operands(g, case)
        d = ns.matmul(a, b, target=unit, c=c, out_format=out)
        counted, _ = ns.matmul(a, b, target=unit, c=c, out_format=out, stats=True)
        want = case["D"].astype(f"u{d.itemsize}").view(d.dtype)
        for got in (d, counted):
            bits = got.view(f"u{d.itemsize}")
            same = bits == case["D"]
            if not g["nan_bits"]:
                same |= np.isnan(got) & np.isnan(want)
            assert same.all(), f"case {i}: got {got.tolist()}, expected {want.tolist()}"


def test_every_unit_and_operand_class_has_vectors():
    """A unit that is added to the table needs a line in make_units.py."""
    have = set()
    for g, cases in GROUPS:
        a, b, _, out = operands(g, cases[0])
        unit = ns.get_target(g["target"], **g["changes"])
        kind = resolve(unit, a, b, out).operands
        have.add((g["target"], kind))
    every = {(name, kind) for name in ns.list_targets() for kind, _ in ns.get_target(name).rules}
    assert every - have == set()


def test_the_file_is_what_the_script_makes():
    arrays, meta = make_units.build()
    with np.load(HERE / "units.npz") as file:
        assert json.loads(str(file["meta"])) == json.loads(json.dumps(meta))
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)
