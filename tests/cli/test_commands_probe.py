"""numsim probe and numsim diff: what they print and write, and what they refuse in one sentence."""

import numpy as np
import pytest
from typer.testing import CliRunner

from numsim.cli import app
from numsim.errors import NumsimError


def run(*args):
    done = CliRunner().invoke(app, list(args))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_a_unit_is_probed_and_written(tmp_path):
    said = run(
        "probe", "--target", "x86.vpdpbusds", "--formats", "uint8,int8", "--depths", "16",
        "-o", str(tmp_path),
    )  # fmt: skip
    assert "overflow='saturate', group=4" in said
    assert {f.name for f in tmp_path.iterdir()} == {"probed.toml", "evidence.csv", "vectors.npz"}
    assert "acc_bits" in (tmp_path / "evidence.csv").read_text()


def test_stimuli_go_out_and_answers_come_back(tmp_path):
    said = run("probe", "--emit", str(tmp_path), "--formats", "int8", "--depths", "16")
    assert "round 1 of stimuli" in said
    for _ in range(6):
        rounds = sorted(tmp_path.glob("round*"))
        for file in rounds[-1].glob("*.npz"):
            with np.load(file) as npz:
                a, b = (npz[k].view(np.int8).astype(np.int64) for k in "ab")
                c = npz["c"].view(np.int32).astype(np.int64)
            d = ((a * b).sum(1) + c + 2**19) % 2**20 - 2**19
            np.savez(file.with_suffix(".d.npz"), d=d.astype(np.int32))
        said = run("probe", "--answers", str(tmp_path))
        if "reproduced" in said:
            break
    assert "acc_bits=20, overflow='wrap'" in said


def test_two_units_are_told_apart(tmp_path):
    said = run("probe", "--apart", "x86.vpdpbusd,x86.vpdpbusds", "-o", str(tmp_path))
    assert "against" in said
    assert (tmp_path / "a" / "d.hex").read_text() != (tmp_path / "b" / "d.hex").read_text()
    assert "no product was found" in run("probe", "--apart", "x86.tdpbssd,arm.sdot")


def test_diff_prints_and_writes(tmp_path):
    said = run(
        "diff", "--targets", "nvidia.ada.mma,nvidia.hopper.wgmma", "--tokens", "8", "-o",
        str(tmp_path),
    )  # fmt: skip
    assert "outputs differ on equal inputs" in said
    assert "group" in said
    assert {f.name for f in tmp_path.iterdir()} == {
        "diff.csv",
        "cause.csv",
        "depth.csv",
        "diff.png",
    }


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("probe",), "one of --emit"),
        (("probe", "--target", "ideal.int"), "--formats"),
        (("probe", "--target", "ideal.int", "--formats", "int8", "--depths", "x"), "--depths"),
        (("probe", "--apart", "ideal.int"), "two units"),
        (("probe", "--answers", "nowhere"), "holds no stimuli"),
        (("diff",), "two sides"),
        (("diff", "--targets", "ideal.fp32"), "two sides"),
        (("diff", "--targets", "ideal.fp32,ideal.exact", "--tokens", "0"), "--tokens"),
        (("diff", "--targets", "ideal.fp32,ideal.exact", "--text", "nowhere"), "cannot read"),
        (("verify", "probe", "--only", "x"), "--units"),
        (("verify", "silicon", "--units", "3"), "verify probe"),
    ],
)
def test_what_is_wrong_is_one_sentence(args, words):
    with pytest.raises(NumsimError, match=words) as caught:
        run(*args)
    assert "\n" not in str(caught.value)
