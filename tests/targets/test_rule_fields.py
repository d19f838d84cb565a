"""What a unit takes, returns and calls NaN is in the fields of its rules, never in a name."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import numpy as np
import pytest
from every_rule import every_rule, random_codes

import numsim as ns
from numsim.kernels.ir import simd
from numsim.targets.plan import plan
from numsim.targets.rules import RULES
from numsim.targets.types import Target

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
E4 = "float8_e4m3fn"
HEAD = 'name = "my.unit"\nmaturity = "assumed"\nevidence = "x"\nsource = "x"\n'


def renamed(name, **changes):
    """The unit from its TOML under another name."""
    text = ns.get_target(name, **changes).to_toml().replace(f'"{name}"', '"my.unit"', 1)
    return Target.from_tables(tomllib.loads(text))


def same(a, b, name, out):
    """Whether bits, counts and plans of two units are equal."""
    found = []
    for unit in (ns.get_target(name), renamed(name)):
        d, counts = ns.matmul(a, b, target=unit, out_format=out, stats=True)
        text = str(plan(unit, a, b, out_format=out)).partition("\n")[2]
        found.append((d.dtype, d.tobytes(), counts, text))
    return found[0] == found[1]


@pytest.mark.parametrize(("name", "left", "right", "out"), list(every_rule()))
def test_every_rule_under_another_name(name, left, right, out):
    rng = np.random.default_rng(5)
    a, b = (random_codes(f, s, rng, wild=False) for f, s in ((left, (3, 40)), (right, (40, 5))))
    assert same(a, b, name, out)


@pytest.mark.parametrize("name", ["nvidia.blackwell.tcgen05", "nvidia.rtx_blackwell.mma"])
@pytest.mark.parametrize("storage", ["nvfp4", "mxfp4", "mxfp8_e4m3"])
def test_scales_inside_under_another_name(name, storage):
    rng = np.random.default_rng(6)
    a = ns.quantize(rng.normal(size=(3, 64)).astype("f4"), storage)
    b = ns.quantize(rng.normal(size=(64, 5)).astype("f4"), storage, axis=0)
    assert same(a, b, name, None)


def blocks(codes, exponents, block, axis):
    """A tensor of codes of E4M3 with E8M0 scales 2**exponents."""
    return ns.QTensor.from_codes(
        ns.encode(codes, E4), E4, scale_format="float8_e8m0fnu", block=block, axis=axis,
        scale_codes=np.asarray(exponents) + 127,
    )  # fmt: skip


def test_blocks_of_one_s_own_length():
    """Sixteen products of 1 times 2**1, sixteen of 1 times 2**3: 32 + 128."""
    unit = Target.from_tables(tomllib.loads(HEAD + '''
[rules."mx:f8f6f4"]
kind = "Fused"
group = 32
align_bits = 25
blocks = ["float8_e8m0fnu/16"]
'''))  # fmt: skip
    a = blocks(np.ones((1, 32)), [[1, 3]], 16, 1)
    b = blocks(np.ones((32, 1)), [[0], [0]], 16, 0)
    assert ns.plan(unit, a, b).inside
    assert ns.matmul(a, b, target=unit).tolist() == [[160.0]]
    a, b = blocks(np.ones((1, 32)), [[1]], 32, 1), blocks(np.ones((32, 1)), [[0]], 32, 0)
    with pytest.raises(ns.UnsupportedError, match="does not multiply"):
        ns.matmul(a, b, target=unit)  # blocks of 32 are not its own, nor has it another class


def test_a_length_that_no_field_names_stays_outside():
    tcgen05 = ns.get_target("nvidia.blackwell.tcgen05")
    a, b = blocks(np.ones((1, 32)), [[1, 3]], 16, 1), blocks(np.ones((32, 1)), [[0], [0]], 16, 0)
    assert ns.plan(tcgen05, a, b).block == 16
    assert ns.plan(tcgen05.changed(blocks=("float8_e8m0fnu/16",)), a, b).inside


@pytest.mark.parametrize(
    ("kind", "field", "message"),
    [
        ("fp8", 'blocks = ["float8_e8m0fnu/32"]', 'name the class "mx:fp8"'),
        ('"mx:f8f6f4"', 'blocks = ["float8_e4m3fn/16"]', "blocks is a list of float8_e8m0fnu/128"),
        ("fp8", 'outputs = ["bfloat16"]', "outputs is a list of float16, float32"),
        ("fp8", 'nan = "loud"', "nan is one of ones, quiet"),
    ],
)
def test_fields_that_contradict(kind, field, message):
    text = f'{HEAD}[rules.{kind}]\nkind = "Fused"\ngroup = 8\nalign_bits = 20\n{field}\n'
    with pytest.raises(ns.NumsimError, match=message):
        Target.from_tables(tomllib.loads(text))


@pytest.mark.parametrize("outputs", [("float32",), ("float16",), ("float32", "float16")])
def test_outputs_of_a_unit_that_aligns(outputs):
    a = ns.quantize([[1.0, 2.5]], "bfloat16")
    unit = ns.get_target("nvidia.ampere.mma", outputs=outputs)
    for out in ("float32", "float16", "bfloat16"):
        if out in outputs:
            assert ns.matmul(a, a.T, target=unit, out_format=out).astype(float).tolist() == [[7.25]]
        else:
            with pytest.raises(ns.UnsupportedError, match=f"returns {', '.join(outputs)} for"):
                ns.matmul(a, a.T, target=unit, out_format=out)


NANS = [  # every rule of floats, each output, chains that restart and scales outside
    ("nvidia.hopper.wgmma", {}, E4, "float32"), ("nvidia.hopper.wgmma", {}, "float16", "float16"),
    ("nvidia.hopper.wgmma", {"promote_every": 4}, E4, "float32"),
    ("nvidia.hopper.wgmma", {"promote_every": 4}, "float16", "float16"),
    ("amd.cdna3.mfma", {}, "float16", "float32"), ("amd.cdna1.mfma", {}, "float16", "float32"),
    ("ideal.fp32", {}, E4, "float32"), ("ideal.fp32", {}, E4, "float16"),
    ("ideal.fp32", {}, E4, "bfloat16"), ("ideal.mac", {"acc_format": "float16"}, E4, "float32"),
    ("ideal.mac", {"rounding": "rtz"}, E4, "bfloat16"),
    ("x86.tdpbf16ps", {}, "bfloat16", "float32"), ("ideal.exact", {}, E4, "float32"),
    ("ideal.exact", {"group": 4}, E4, "bfloat16"), ("ideal.exact", {"group": 3}, E4, "float16"),
]  # fmt: skip
BITS = {
    ("ones", "float32"): 0x7FFFFFFF, ("quiet", "float32"): 0x7FC00000,
    ("ones", "float16"): 0x7FFF, ("quiet", "float16"): 0x7E00,
    ("ones", "bfloat16"): 0x7FFF, ("quiet", "bfloat16"): 0x7FC0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "fmt", "out"), NANS)
@pytest.mark.parametrize("nan", ["ones", "quiet"])
def test_the_pattern_of_nan_is_a_field(name, changes, fmt, out, nan):
    unit = ns.get_target(name, nan=nan, **changes)
    x = np.ones((2, 8), np.float32)
    x[1, 3] = np.nan
    a, b = (ns.QTensor.from_codes(ns.encode(v, fmt), fmt) for v in (x, np.ones((8, 5), np.float32)))
    scaled = ns.QTensor.from_codes(a.codes, fmt, scale=np.float32(2.0))
    for left in (a, scaled):
        for counts in (False, True):
            for path in simd.PATHS:
                with simd.force(path):
                    d = ns.matmul(left, b, target=unit, out_format=out, stats=counts)
                d = d[0] if counts else d
                assert (d[1].view(f"u{d.itemsize}") == BITS[nan, out]).all()
                assert (d[0] == (16 if left is scaled else 8)).all()


def test_what_is_asked_of_a_rule_is_looked_up():
    """No `isinstance` of a rule: what differs stands in RULES; the probe alone makes rules."""
    names = {rule.__name__ for rule in RULES}
    package = Path(ns.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.parent == package / "probe":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                assert not asked & names, f"{path}:{node.lineno}"
