"""numsim verify: the checks pass, count what they say, and find planted errors."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.kernels.convert import codec
from numsim.verify import check_every_float32, check_modes, conversion, formats_to_check


@pytest.mark.parametrize("name", formats_to_check())
def test_every_mode_around_every_tie(name):
    check = check_modes(name)
    assert check.different == 0, check
    assert check.compared == 7 * 65536 * 6 * 3


@pytest.mark.parametrize("name", ["int8", "q3.4", "uint16", "p3109_k8p3se", "p3109_k8p1ue"])
def test_modes_of_other_formats(name):
    assert check_modes(name).different == 0


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float16", "int8", "p3109_k8p4ue"]
)
def test_a_range_of_float32(name):
    for start in (0, 0x7F700000, 0xC3D00000):
        checks = check_every_float32(name, start=start, stop=start + (1 << 20))
        for check, policy in zip(checks, ("saturate", "special"), strict=True):
            assert (check.compared, check.different) == (1 << 20, 0), check
            assert check.name == f"{name} rne {policy}"


@pytest.mark.parametrize("name", ["float8_e4m3fnuz", "float4_e2m1fn", "uint4", "float8_e8m0fnu"])
def test_both_policies_in_one_pass_are_the_generic_kernel(name):
    f = ns.get_format(name)
    bits = (np.arange(1 << 16, dtype=np.uint32) << 16) | np.uint32(0x8000)
    x, nan = bits.view(np.float32), f.nan_code if f.has_nan else f.max_code
    codes = [
        ns.encode(x, name, overflow=policy, nan=None if f.has_nan else "max")
        for policy in ("saturate", "special")
    ]
    for i, wrong in enumerate(codes):
        wrong[[40_000, 40_001]] ^= 1
        found = codec.differing_nearest(bits, *codes, f.params, nan)
        single = codec.differing(bits, wrong, f.params, 0, i, nan)
        assert single == found[2 * i : 2 * i + 2] == (2, bits[40_000])
        assert found[2 - 2 * i] == 0
        wrong[[40_000, 40_001]] ^= 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", formats_to_check())
def test_every_float32(name):
    for check in check_every_float32(name):
        assert (check.compared, check.different) == (1 << 32, 0), check


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float16"])
def test_a_planted_error_is_found(name, monkeypatch):
    honest = conversion.encode

    def wrong(x, *arguments, **options):
        codes = honest(x, *arguments, **options)
        codes[x.view(np.uint32) == 0x3F80_1234] ^= 1
        return codes

    monkeypatch.setattr(conversion, "encode", wrong)
    for check in check_every_float32(name, start=0x3F80_0000, stop=0x3F81_0000):
        assert check.different == 1
        assert "0x3f801234" in check.first


@pytest.mark.parametrize("name", ["nf4", "float32", "tfloat32"])
def test_what_cannot_be_checked_raises(name):
    with pytest.raises(ns.NumsimError, match="16 bits"):
        check_every_float32(name)


def test_the_command():
    result = CliRunner().invoke(app, ["verify", "--formats", "e2m1,e4m3"])
    assert result.exit_code == 0, result.output
    assert result.output.count("ok ") == 2
    assert "8,257,536" in result.output
