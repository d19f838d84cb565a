"""A black box is found out from its answers; one that cannot be used is named by its stimulus."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import numsim as ns
from numsim.probe import ProbeError, order_of, probe
from numsim.probe.apart import results
from numsim.probe.inputs import first_round, moderate_sums, random_sums
from numsim.probe.kinds import WAYS
from numsim.probe.machine import as_machine, bits_of, laid_out, rule_in, unit_of
from numsim.probe.probe import machine_for
from numsim.probe.readings import exact_bits, power_of
from numsim.probe.search import Search
from numsim.probe.stages import UNSEEN
from numsim.probe.stimuli import exact, random, span
from numsim.targets import Target
from numsim.targets.types import Exact, Fused, IntSum, Mac, Mme, TwoStage

SHORT = (16, 64)


def recovered(rule, formats, out=None, depths=SHORT, **chain):
    """Return the probe of a unit, and whether what was found gives the same bits on new sums."""
    machine = machine_for(formats, out, True, depths)
    unit = unit_of(rule, machine, **chain)
    found = probe(
        as_machine(unit, machine), formats=formats, out_format=out, depths=depths, rows=16
    )
    assert found.target is not None
    if machine.integer:
        from numsim.probe import integers

        batch = integers.random(machine, depths[0], 1000, 99)
    else:
        batch = random(machine, depths[0], 1000, 99)
    same = bits_of(results(unit, machine, batch)) == bits_of(results(found.target, machine, batch))
    return found, bool(same.all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "formats", "out"),
    [
        (Fused(8, 13, 13), "float8_e4m3fn", None),
        (Fused(4, 23), "float16", None),
        (Fused(16, 25, accumulator="late"), "float8_e5m2", None),
        (Fused(8, 20, align="floor", rounding="rne", nan="quiet"), "bfloat16", None),
        (Fused(16, 25, accumulator="halves"), "float8_e4m3fn", "float16"),
        (TwoStage(8, streams=2), "float8_e4m3fnuz", None),
        (Exact(group=4, negative_zero=True), "float8_e4m3fn", None),
        (Mac(order="odd_first", flush=True, tiny="unbounded"), "bfloat16", None),
        (Mac(fused=False, rounding="rto", order="tree", group=4), "bfloat16", None),
        (Mac(acc_format="float16"), "float8_e4m3fn", None),
        (Mac("q1.6", "bfloat16", False, "rup", overflow="inf"), "float6_e3m2fn", None),
        (TwoStage(4, 31, 32), "float6_e3m2fn", None),
        (Mac("float_e2m8", "bfloat16", False, "rtz", "tree", 2, True, negative_zero=False,
             overflow="inf"), "float8_e4m3fn", None),
        (Mac("float_e5m23", None, False, "rdn", negative_zero=False, overflow="inf"),
         "float8_e4m3fn", None),
        (Mac("q2.11", order="odd_first", flush=True, tiny="unbounded"), "float8_e5m2", None),
        (Fused(1, 15, accumulator="late", align="floor", rounding="rne"), "tfloat32", None),
    ],
    ids=str,
)  # fmt: skip
def test_a_unit_is_found_again_from_outside(rule, formats, out):
    found, same = recovered(rule, formats, out)
    assert same
    assert found.failed == ""
    assert found.right == found.asked
    for name in ("group", "align_bits", "keep_bits", "accumulator", "order", "rounding"):
        if hasattr(rule, name) and name not in found.undecided and getattr(rule, name) is not None:
            assert getattr(found.target.rules[0][1], name) == getattr(rule, name), name


@pytest.mark.parametrize(
    ("rule", "formats"),
    [
        (IntSum(acc_bits=20), "int8"),
        (IntSum(acc_bits=24, overflow="saturate", group=4), "int8"),
        (IntSum(group=4, pair_bits=16), ("uint8", "int8")),
        (IntSum(overflow="saturate", group=2), "int16"),
        (IntSum(31, "saturate", 16, pair_bits=12), "int16"),  # one product shows the pair
    ],
    ids=str,
)
def test_an_integer_unit_is_found_again(rule, formats):
    found, same = recovered(rule, formats)
    assert same
    mine = found.target.rules[0][1]
    assert (mine.acc_bits, mine.pair_bits) == (rule.acc_bits, rule.pair_bits)
    if rule.overflow == "saturate":
        assert (mine.overflow, mine.group) == ("saturate", rule.group)
    else:
        assert "group" in found.undecided or rule.pair_bits  # any grouping wraps to the same bits


def test_where_a_long_sum_is_cut_is_found():
    found, _ = recovered(IntSum(acc_bits=16, overflow="saturate"), "int8", promote_every=32)
    assert found.target.promote_every == 32


def test_parts_of_a_long_sum_are_told_from_others():
    split = {"split_k": 2, "split_tile": 16, "split_order": "serial"}
    found, same = recovered(IntSum(acc_bits=18), "int8", **split)
    assert same
    machine = machine_for("int8", None, True, SHORT)
    unit = unit_of(IntSum(acc_bits=18), machine, **split)
    batch = random_sums(machine, SHORT[-1], 1000, 98)
    both = [bits_of(results(x, machine, batch)) for x in (unit, found.target)]
    np.testing.assert_array_equal(*both)


def test_what_no_operand_reaches_is_undecided():
    # two products of int4 are 128 at most: no limit of 9 bits and more is ever met
    found, same = recovered(IntSum(26, "saturate", 2, pair_bits=12), "int4", depths=(16,))
    assert same
    assert found.target.rules[0][1].group == 2
    assert "10" in found.undecided["pair_bits"]


def asked(unit, machine):
    """Return what a unit answers to the first stimuli."""
    search = Search(machine)
    for batch in first_round(machine):
        search.learn(batch, results(unit, machine, batch))
    return search


@pytest.mark.parametrize("rule", [Mac("float_e3m12", rounding="rup"), Fused(4, 20)], ids=str)
def test_a_rule_that_may_not_fit_does_not(rule):
    machine = machine_for("float8_e5m2", None, True, SHORT)
    search = asked(unit_of(rule, machine), machine)
    dropped = 0
    for kind in (Mac, Fused):
        for other in [*WAYS[kind].adding(search.seen)][::17]:
            if not search.may_fit(other, "exact"):
                unit = unit_of(other, machine)
                assert not search.fits(unit, ("exact",))
                assert not search.fits(replace(unit, promote_every=UNSEEN), ("exact",))
                dropped += 1
    assert dropped > 20


def test_sums_below_a_limit_fit_a_narrow_accumulator():
    # a q1.6 accumulator ends at 2: more than half of usual random sums leave it, few of these do
    machine = machine_for("float8_e5m2", None, True, SHORT)
    codes = moderate_sums(machine, 64, 400, 1)[1:3]
    a, b = (ns.decode(x, "float8_e5m2").astype(float) for x in codes)
    size = np.abs(a * b).sum(1)
    assert (size < 2).mean() > 0.25
    assert (size > 64).any()


def test_the_toml_of_a_probe_reads_back_and_names_its_evidence(tmp_path):
    found, _ = recovered(IntSum(acc_bits=20), "int8", depths=(16,))
    path = tmp_path / "probed.toml"
    path.write_text(found.to_toml(), encoding="utf-8")
    assert Target.from_toml(path).rules == found.target.rules
    witness = found.evidence["acc_bits"][0]
    name, _, row = witness.stimulus.partition(" ")
    d = found.vectors[f"{name}_d"][int(row)]
    assert hex(int(np.array([d]).view(np.uint32)[0])) == witness.answer
    assert witness.answer != witness.instead
    assert "# " in found.to_toml().splitlines()[0]


def test_evidence_stands_by_hand():
    # 7 products of 127 * 127 = 112,903 are beyond 2**16 - 1 = 65,535: 17 bits wrap them
    found, _ = recovered(IntSum(acc_bits=17), "int8", depths=(16,))
    a, b, c, d = (found.vectors[f"steps_{key}"] for key in "abcd")
    exactly = (a.astype(np.int64) * b.astype(np.int64)).sum(1) + c
    assert ((exactly + 2**16) % 2**17 - 2**16 == d).mean() == 1.0
    assert (np.abs(exactly) > 2**16).any()


def test_bits_that_a_sum_keeps_are_read_from_two_powers_of_two():
    machine = machine_for("float16", None, True, SHORT)
    batch = exact(machine)
    for rule, bits in ((Fused(8, 13, 13), 13), (Fused(8, 24), 23), (Mac(acc_format="bfloat16"), 7)):
        d = results(unit_of(rule, machine), machine, batch)
        assert exact_bits(machine, batch, d)[0] == bits


def test_stimuli_are_what_they_say_exactly():
    # independent: decoded operands as fractions, an exact unit must give the correctly rounded sum
    machine = machine_for("float8_e4m3fn", None, True, (16,))
    unit = ns.get_target("ideal.exact")
    for batch in first_round(machine)[:4]:
        d = laid_out(machine, batch).answers(unit, machine)
        a, b = (ns.decode(x, "float8_e4m3fn") for x in (batch.a, batch.b))
        for row in range(0, len(a), 37):
            exactly = sum(
                (
                    Fraction(float(x)) * Fraction(float(y))
                    for x, y in zip(a[row], b[row], strict=True)
                ),
                Fraction(float(batch.c[row])),
            )
            # within half a unit of the last place
            assert (
                abs(Fraction(float(d[row])) - exactly)
                <= Fraction(float(np.spacing(abs(d[row])))) / 2
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "formats", "blocks", "changes"),
    [
        ("riscv.zvfqwdota8f", "float8_e4m3fn", None, {"group": 8}),
        ("intel.gaudi3.mme", "float8_e4m3fn", None, {"bias_a": 9, "bias_b": 20}),
        ("intel.gaudi2.mme", "bfloat16", None, {}),
        ("arm.fdot_fp8", "float8_e5m2", None, {"lscale": 6}),
        ("nvidia.blackwell.tcgen05", "float8_e4m3fn", "float8_e8m0fnu/32", {}),
        ("nvidia.blackwell.tcgen05", "float4_e2m1fn", "float8_e4m3fn/16", {}),
        ("x86.top4mxbssps", "q1.6", "float8_e8m0fnu/32", {}),
    ],
)
def test_units_of_published_rules_are_found_again(unit, formats, blocks, changes):
    unit = ns.get_target(unit, **changes)
    depths = (64, 128)
    machine = machine_for(formats, None, True, depths, blocks)
    rule = rule_in(unit, machine)
    found = probe(as_machine(unit, machine), formats=formats, depths=depths, blocks=blocks)
    assert found.failed == ""
    mine = found.target.rules[0][1]
    batch = random_sums(machine, 64, 1000, 99)
    same = bits_of(results(unit, machine, batch)) == bits_of(results(found.target, machine, batch))
    assert same.all()
    if type(mine) is type(rule):  # Mme that keeps subnormals in place is Fused
        names = ("group", "align_bits", "accumulator", "lscale", "flush", "min_exponent")
        for name in (n for n in names if hasattr(rule, n) and n not in found.undecided):
            assert getattr(mine, name) == getattr(rule, name), name
    if changes.get("bias_a"):
        assert mine.bias_a + mine.bias_b == 29  # a product shows only their sum


def test_a_machine_with_block_scales_gets_them_after_c():
    shapes = set()

    def run(a, b, c, scale_a, scale_b):
        shapes.add((a.shape, b.shape, c.shape, scale_a.shape, scale_b.shape))
        raise StopIteration

    with pytest.raises(StopIteration):
        probe(run, formats="float4_e2m1fn", depths=(64,), rows=8, blocks="float8_e8m0fnu/32")
    assert shapes == {((8, 64), (64, 8), (8, 8), (8, 2), (2, 8))}


def test_scaled_stimuli_mean_their_products():
    # independent: codes and scales as fractions; an exact unit gives the rounded sum
    machine = machine_for("float8_e4m3fn", None, True, (64,), "float8_e8m0fnu/32")
    unit = unit_of(Exact(group=64), machine)
    for batch in first_round(machine)[:2]:
        d = laid_out(machine, batch).answers(unit, machine)
        a, b = (ns.decode(x, "float8_e4m3fn") for x in (batch.a, batch.b))
        for row in range(0, len(a), 41):
            scale = [
                Fraction(2) ** (int(x) + int(y) - 254)
                for x, y in zip(batch.sa[row], batch.sb[row], strict=True)
            ]
            exactly = sum(
                (
                    Fraction(float(x)) * Fraction(float(y)) * scale[k // 32]
                    for k, (x, y) in enumerate(zip(a[row], b[row], strict=True))
                ),
                Fraction(float(batch.c[row])),
            )
            near = Fraction(float(np.spacing(abs(d[row])))) / 2
            assert abs(Fraction(float(d[row])) - exactly) <= near


def test_a_power_of_all_products_is_read():
    machine = machine_for("float8_e4m3fn", None, True, SHORT)
    batch = span(machine)
    for rule, power in (
        (Exact(4), 0), (Exact(4, lscale=9), -9), (Mme(8, 24, bias_a=4, bias_b=4), 6),
    ):  # fmt: skip
        d = results(unit_of(rule, machine), machine, batch)
        assert power_of(machine, batch, d) == power


def wrapping(a, b, c):
    return (c + a.astype(np.int32) @ b.astype(np.int32)) << 8 >> 8


def stopped(run, **how):
    with pytest.raises(ProbeError) as caught:
        probe(run, **({"formats": "int8", "depths": (16,), "rows": 8} | how))
    return caught.value


def test_a_machine_that_answers_otherwise_the_second_time_is_named():
    rng = np.random.default_rng(0)
    calls = iter(range(10**6))

    def run(a, b, c):
        noise = rng.integers(0, 2, c.shape, dtype=np.int32) if next(calls) > 700 else 0
        return wrapping(a, b, c) + noise

    error = stopped(run)
    assert "stimulus" in str(error)
    assert "asked twice" in str(error)
    assert "nor does it repeat itself" in str(error)
    assert "\n" not in str(error)
    assert error.probe.target is not None  # what was learned is kept
    assert error.probe.right > 0
    assert error.probe.vectors["start_d"].size


def test_a_probe_that_ends_before_its_last_question_keeps_what_fits_so_far():
    unit, calls = ns.get_target("ideal.exact", group=4), iter(range(10**6))
    inner = as_machine(unit, machine_for("float8_e4m3fn", None, True, SHORT))

    def run(a, b, c):  # the sums of two products are answered, those of more are not
        d = inner(a, b, c).copy()
        d.view(np.uint32)[0, 0] ^= next(calls) == 60
        return d

    error = stopped(run, formats="float8_e4m3fn", depths=SHORT, rows=32)
    found = error.probe
    assert "stimulus span" in str(error)
    assert found.right == found.asked > 500
    assert isinstance(found.target.rules[0][1], Exact | Mac | Fused)
    assert "the probe stopped early: stimulus span" in str(found)
    assert "no rule of numsim" not in str(found)


def test_a_probe_without_any_answer_names_no_unit():
    found = stopped(lambda a, b, c: None).probe
    assert (found.asked, found.nearest) == (0, ())
    assert "nearest" not in str(found)


def test_long_lists_of_what_is_open_are_short():
    def run(a, b, c):
        return c + a.astype(np.int32) @ b.astype(np.int32)

    found = probe(run, formats="int8", depths=(16, 64))
    assert "split_k 2" in found.undecided["promote_every"]
    assert "more such" in found.undecided["promote_every"]
    assert max(map(len, found.undecided.values())) < 300
    assert "33" not in [w.other for w in found.evidence["acc_bits"]]  # results have 32 bits


def test_a_machine_that_looks_at_the_place_is_told_so():
    def run(a, b, c):
        d = wrapping(a, b, c)
        d[0] += 1
        return d

    assert "the sum depends on its place" in str(stopped(run))


def test_a_machine_that_gives_nan_everywhere_is_named():
    error = stopped(lambda a, b, c: np.full((8, 8), np.nan, np.float32), formats="float8_e4m3fn")
    assert "stimulus exact 0" in str(error)
    assert "NaN" in str(error)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda a, b, c: c[:4], "has shape"),
        (lambda a, b, c: c.astype(np.int64), "has type int32; got int64"),
        (lambda a, b, c: None, "has shape"),
    ],
)
def test_a_wrong_shape_or_type_names_the_stimulus(run, words):
    error = stopped(run)
    assert "stimulus start" in str(error)
    assert words in str(error)
    assert error.probe.target is None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"depths": ()}, "depths"), ({"depths": (64, 16)}, "depths"),
        ({"formats": ("int8",) * 3}, "formats"), ({"formats": "posit8_es2"}, "powers of two"),
        ({"formats": "float8_e8m0fnu"}, "zero"), ({"blocks": "float8_e8m0fnu"}, "blocks is"),
        ({"blocks": "float8_e8m0fnu/32", "depths": (48,)}, "multiples"),
        ({"blocks": "nothing/32", "depths": (64,)}, "nothing"),
        ({"blocks": "float8_e8m0fnu/32", "out_format": "float16", "formats": "float8_e5m2",
          "depths": (64,)}, "float32"), ({"out_format": "bfloat16"}, "out_format"),
        ({"formats": "float16", "out_format": "int32"}, "out_format"), ({"rows": 0}, "rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_probed_is_said_before_any_call(how, words):
    def never(a, b, c):
        raise AssertionError

    with pytest.raises(ns.NumsimError, match=words):
        probe(never, **({"formats": "int8"} | how))


def test_a_machine_that_no_rule_fits_gets_the_nearest_and_the_question():
    def run(a, b, c):  # loses every product of -1
        left = np.where(a == -1, 0, a).astype(np.int32)
        return c + left @ b.astype(np.int32)

    found = probe(run, formats="int8", depths=(16,), rows=16)
    assert found.failed
    assert found.right < found.asked
    assert "no rule of numsim" in str(found)


def test_the_package_is_called_itself():
    assert (
        ns.probe(wrapping, formats="int8", depths=(16,), rows=16).target.rules[0][1].acc_bits == 24
    )


def test_few_terms_pass_the_groups_behind_them():
    # an accumulator that joins keeps 20 bits below its own exponent in every group of zeros too
    machine = machine_for("bfloat16", None, True, SHORT)
    unit = unit_of(Fused(8, 20), machine)
    search = Search(machine)
    for batch in first_round(machine)[:2]:
        search.learn(batch, results(unit, machine, batch))
    whole, some, own = (unit_of(Fused(n, 20), machine) for n in (16, 4, 8))
    assert not search.fits(whole, ("exact", "rich"))
    assert search.fits(some, ("exact", "rich"))
    assert search.fits(own, ("exact", "rich"))


@pytest.mark.parametrize("depth", [4, 5, 9, 15])
def test_a_machine_of_a_small_depth_is_laid_out(depth):
    machine = machine_for("int8", None, True, (depth,))
    unit = ns.get_target("ideal.int")
    for batch in first_round(machine):
        assert len(results(unit, machine, batch)) == len(batch.a)


def test_a_rule_changed_by_one_bit_is_another():
    # the check behind the closed loop sees a single bit of alignment
    machine = machine_for("float16", None, True, SHORT)
    batch = random(machine, 16, 1000, 99)
    one = unit_of(Fused(8, 24), machine)
    other = replace(one, rules=((one.rules[0][0], replace(one.rules[0][1], align_bits=25)),))
    assert (bits_of(results(one, machine, batch)) != bits_of(results(other, machine, batch))).any()


@pytest.mark.parametrize(
    ("rule", "brackets"),
    [
        (Mac(), "(((((((0 1) 2) 3) 4) 5) 6) 7)"),
        (Mac(order="odd_first"), "(((((((0 1) 3) 2) 5) 4) 7) 6)"),
        (Mac(order="tree", group=4), "(((0 1) (2 3)) ((4 5) (6 7)))"),
        (Fused(4, 23), "((0 1 2 3) 4 5 6 7)"),
    ],
    ids=str,
)
def test_the_order_of_a_sum_is_read_from_cancelling_numbers(rule, brackets):
    machine = machine_for("bfloat16", None, True, (8,))
    run = as_machine(unit_of(rule, machine), machine)
    assert order_of(run, formats="bfloat16", c=True, depth=8, rows=8) == brackets
