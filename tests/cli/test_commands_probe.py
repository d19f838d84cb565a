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


@pytest.mark.slow
def test_diff_runs_the_cases_of_two_files_of_results(tmp_path):
    import numsim as ns

    one = {"formats": ["e4m3"], "granularities": ["per_tensor"], "limit_tokens": 32}
    for name, target in (("a", "nvidia.ada.mma"), ("b", "nvidia.hopper.wgmma")):
        ns.sweep(**one, targets=[target], out=tmp_path / f"{name}.csv")
    ns.sweep(
        **one, targets=["nvidia.ada.mma", "nvidia.hopper.wgmma"], out=tmp_path / "both.csv"
    )  # fmt: skip
    a, b, both = (str(tmp_path / f"{name}.csv") for name in ("a", "b", "both"))
    said = run("diff", a, b, "--tokens", "8", "-o", str(tmp_path / "out"))
    assert "outputs differ on equal inputs" in said
    cause = (tmp_path / "out" / "cause.csv").read_text()
    assert cause.splitlines()[1].startswith("group,16,32,")
    assert "bit for bit equal" in run("diff", a, a, "--tokens", "8")
    with pytest.raises(NumsimError, match="name one case") as caught:
        run("diff", a, both)
    case = str(caught.value).rpartition(" has ")[2].split(" ")[0]  # the first: Ada's
    assert "bit for bit equal" in run("diff", a, f"{both}:{case}", "--tokens", "8")
    with pytest.raises(NumsimError, match="leave them out"):
        run("diff", a, b, "--text", "x.txt")
    (tmp_path / "b.manifest.toml").unlink()
    with pytest.raises(NumsimError, match=r"there is no .*b\.manifest\.toml"):
        run("diff", a, b)


@pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
@pytest.mark.slow
def test_a_unit_with_block_scales_is_probed_and_told_apart(tmp_path):
    said = run(
        "probe", "--target", "nvidia.blackwell.tcgen05", "--formats", "float4_e2m1fn", "--blocks",
        "float8_e4m3fn/16", "--depths", "64", "-o", str(tmp_path),
    )  # fmt: skip
    assert "ScaledFp4(align_bits=35, min_exponent=-139" in said
    with np.load(tmp_path / "vectors.npz") as npz:
        assert npz["exact_sa"].shape == (npz["exact_a"].shape[0], 4)
    said = run(
        "probe", "--apart", "nvidia.blackwell.tcgen05,x86.top4mxbf8ps", "-o", str(tmp_path / "v")
    )  # fmt: skip
    assert "against" in said
    assert (tmp_path / "v" / "a" / "d.hex").read_text() != (
        tmp_path / "v" / "b" / "d.hex"
    ).read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("diff", "a.csv", "b.csv"), "there is no a.csv"),
        (("diff", "a.csv"), "two sides"),
        (("probe", "--target", "ideal.int", "--formats", "int8", "--blocks", "x"), "blocks is"),
        (("probe", "--answers", "x", "--blocks", "float8_e8m0fnu/32"), "leave --blocks out"),
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
