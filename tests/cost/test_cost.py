"""What formats cost: rows with provenance, the model of area, columns of a sweep."""

import pytest

import numsim as ns
from numsim.cost import Unit, area_ge, load_costs, price, scaled

E4M3 = ("float8_e4m3fn", "float8_e4m3fn")
ROW = """
[[row]]
id = "mine.mac"
quantity = "energy"
op = "mac"
formats = ["float8_e4m3fn", "float8_e4m3fn"]
accumulator = "float32"
value = 0.5
unit = "pJ"
node = "4nm"
scope = "operator"
source = "a design of ours"
"""


def write(tmp_path, text):
    path = tmp_path / "cost.toml"
    path.write_text(text)
    return path


def test_area_of_fp8_by_width_and_by_products_is_the_published_table_of_the_model():
    widths = [round(area_ge(Unit(E4M3, align_bits=bits))) for bits in (8, 10, 13, 16, 20, 25)]
    assert widths == [522, 557, 610, 704, 785, 900]
    steps = [round(area_ge(Unit(E4M3, n, 13))) for n in (1, 4, 8, 16, 32, 64)]
    assert steps == [1934, 906, 736, 652, 610, 589]
    assert [round(area_ge(Unit((f, f), acc_bits=32))) for f in ("int8", "int4")] == [624, 206]
    fp4 = "float4_e2m1fn"
    assert round(area_ge(Unit((fp4, fp4), scale_format="float8_e8m0fnu", block=32))) == 270


def test_area_of_one_integer_product_by_hand():
    # 8x8: 64 ANDs, 56 full adders; 16 flip-flops; an accumulator of 32 adders and flip-flops
    want = 64 * 1.33 + 56 * 6 + 16 * 5.5 + 32 * (6 + 5.5)
    assert area_ge(Unit(("int8", "int8"), 1, acc_bits=32)) == pytest.approx(want, rel=1e-14)


def test_area_beyond_the_model_is_refused():
    with pytest.raises(ns.NumsimError, match="two integer or two float"):
        area_ge(Unit(("nf4", "int8")))
    with pytest.raises(ns.NumsimError, match="align_bits"):
        area_ge(Unit(("bfloat16", "bfloat16"), align_bits=None))


def test_every_row_has_a_node_and_a_source_and_memory_prices_nothing():
    rows = load_costs()
    assert len({row.id for row in rows}) == len(rows)
    assert all(row.node and row.source for row in rows)
    assert all(not row.enabled for row in rows if row.mark == "M")


def test_energy_is_never_added_across_sources():
    rows = load_costs()
    # float32 mul is in two sources, int8 add in one: both figures come from Horowitz
    found = price(rows, [("int8", "int8", "int32"), ("float32", "float32", "float32")])
    assert {one.source for one in found.values()} == {"Horowitz, ISSCC 2014"}
    assert found["int8", "int8", "int32"].mac_pj == pytest.approx(0.2 + 0.1)
    assert found["float32", "float32", "float32"].mac_pj == pytest.approx(3.7 + 0.9)
    assert price(rows, [("float8_e4m3fn", "float8_e4m3fn", "float32")]) == {}
    assert price(rows, [("bfloat16", "bfloat16", "float32")]) == {}  # from memory alone: off


def test_a_product_of_one_source_is_not_added_by_another(tmp_path):
    mul = ROW.replace("mine.mac", "mine.mul").replace('op = "mac"', 'op = "mul"')
    mul = mul.replace('accumulator = "float32"\n', "").replace("4nm", "45nm")
    add = mul.replace("mine.mul", "mine.add").replace('op = "mul"', 'op = "add"')
    add = add.replace('formats = ["float8_e4m3fn", "float8_e4m3fn"]', 'formats = ["float32"]')
    product = ("float8_e4m3fn", "float8_e4m3fn", "float32")
    # the node is that of Horowitz, whose float32 addition it must not take
    assert price(load_costs(write(tmp_path, mul)), [product]) == {}
    assert price(load_costs(write(tmp_path, mul + add)), [product])[product].mac_pj == 1.0
    other = mul + add.replace('scope = "operator"', 'scope = "unit"')
    assert price(load_costs(write(tmp_path, other)), [product]) == {}


def test_a_row_of_ones_own_prices_its_formats(tmp_path):
    rows = load_costs(write(tmp_path, ROW))
    product = ("float8_e4m3fn", "float8_e4m3fn", "float32")
    one = price(rows, [product])[product]
    assert (one.mac_pj, one.node, one.mark) == (0.5, "4nm", "U")
    replaced = load_costs(write(tmp_path, ROW.replace("mine.mac", "horowitz14.int8.mul")))
    assert len(replaced) == len(rows) - 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('node = "4nm"\n', "", "'mine.mac': node is required"),
        ('source = "a design of ours"\n', "", "'mine.mac': source is required"),
        ("scope", "scpoe", "'mine.mac': .*scope is required|'scpoe' is no key"),
        ("value = 0.5", "value = -1", "'mine.mac': value must be greater than 0"),
        ('unit = "pJ"', 'unit = "um2"', "'mine.mac': unit of energy is pJ"),
        ("[[row]]", "[row]", r"\[\[row\]\] tables only"),
        ("[[row]]", "[[row", "is not TOML"),
        ('op = "mac"', 'op = "mac"\nbase = "x"', "only ratios have one"),
    ],
)
def test_wrong_rows_are_refused_with_row_and_key(tmp_path, old, new, message):
    with pytest.raises(ns.NumsimError, match=message):
        load_costs(write(tmp_path, ROW.replace(old, new)))


def test_scaling_between_nodes_marks_every_figure_and_needs_a_source(tmp_path):
    rows = {row.id: row for row in scaled(load_costs(), "45nm:7nm=0.2", "a paper")}
    assert rows["horowitz14.float32.mul"].value == pytest.approx(0.74)
    moved = [row for row in rows.values() if row.source.startswith("Horowitz")]
    assert {(row.node, row.mark) for row in moved} == {("7nm", "U")}
    for factors, source, message in (
        ("45nm:7nm=x", "s", "OLD:NEW=FACTOR"),
        ("3nm:7nm=2", "s", "nodes are"),
        ("45nm:7nm=2", " ", "needs its source"),
    ):
        with pytest.raises(ns.NumsimError, match=message):
            scaled(load_costs(), factors, source)


@pytest.mark.filterwarnings("ignore::numsim.errors.SkippedWarning")
def test_columns_of_cost_add_up_and_fake_quantisation_has_none(tmp_path):
    rows = ns.sweep(
        formats=["int8", "e4m3"], granularities=["per_tensor"], limit_tokens=63, window=64,
        targets=["ideal.int", "nvidia.hopper.wgmma", "ideal.fp32"], bandwidth_gb_s=1.0,
        peak_tmac_s={"float16": 1.0, "int8": 2.0},
    )  # fmt: skip
    whole = rows[rows.layer == "all"].set_index(["format", "target"])
    products = rows[rows.layer != "all"]
    one = products[(products.format == "int8") & (products.target == "ideal.int")]
    own = products[products.case_id == one.case_id.iloc[0]]
    case = whole.loc["int8", "ideal.int"]
    assert case.macs == (own.M * own.N * own.K).sum() == own.macs.sum()
    assert case.energy_pj == pytest.approx(own.energy_pj.sum())
    linear = own[own.emulated]
    assert case.bytes_weights == pytest.approx((linear.N * linear.K + 4).sum())  # and a scale each
    assert case.bytes_float16 == 2 * (linear.N * linear.K + linear.M * linear.K).sum()
    wide, moved = (
        linear[[*names, "bytes_out"]].sum(axis=1) / 1e9
        for names in (["bytes_float16"], ["bytes_weights", "bytes_acts"])
    )
    slow = (linear.macs / 2e12).combine(moved, max)
    assert case.roofline_seconds == pytest.approx(slow.sum())
    speed = (linear.macs / 1e12).combine(wide, max).sum() / slow.sum()
    assert case.roofline_speedup == pytest.approx(speed)
    assert case.area_ge == pytest.approx(area_ge(Unit(("int8", "int8"), acc_bits=32)))
    assert (case.energy_node, case.cost_mark) == ("45nm", "S")
    qk = own[own.op == "qk"].iloc[0]
    assert qk.bytes_kv == 4 * 64 * 32 * 2  # float32 keys of two heads of 32, 64 tokens
    fake = whole.loc["int8", "ideal.fp32"]
    assert fake[["energy_pj", "area_ge"]].isna().all()
    fp8 = whole.loc["float8_e4m3fn", "nvidia.hopper.wgmma"]
    assert fp8.isna()["energy_pj"]  # no source prices FP8
    assert fp8.isna()["roofline_seconds"]  # no peak was stated for it
    assert fp8.area_ge == pytest.approx(area_ge(Unit(E4M3, 32, 13)))


def test_a_sweep_refuses_wrong_costs_before_any_work(tmp_path):
    out = tmp_path / "r.csv"
    bad = write(tmp_path, ROW.replace('node = "4nm"\n', ""))
    with pytest.raises(ns.NumsimError, match="node is required"):
        ns.sweep(formats=["int8"], cost=bad, out=out)
    with pytest.raises(ns.NumsimError, match="scale_node and scale_source go together"):
        ns.sweep(formats=["int8"], scale_node="45nm:7nm=0.2", out=out)
    with pytest.raises(ns.NumsimError, match="peak_tmac_s"):
        ns.sweep(formats=["int8"], peak_tmac_s="int8=fast", out=out)
    assert not out.exists()
