"""A probe by files gives what a probe by calls gives; files that do not fit are named."""

import numpy as np
import pytest

from numsim.errors import NumsimError
from numsim.probe import ProbeError, probe
from numsim.probe.offline import Asked, emit, read_answers
from numsim.probe.words import save


def machine(a, b, c):
    return (c + a.astype(np.int32) @ b.astype(np.int32)) << 10 >> 10


def answer(folder, files, kind="npz"):
    """Do what the machine in another building does, with the npz that was written."""
    for name in files:
        with np.load(folder / f"{name}.npz") as npz:
            a, b, c = (npz[key] for key in "abc")
        rows = zip(a.view(np.int8), b.view(np.int8), c.view(np.int32), strict=True)
        d = np.array([machine(x[None], y[:, None], z[None, None])[0, 0] for x, y, z in rows])
        if kind == "npz":
            np.savez(folder / f"{name}.d.npz", d=d.astype(np.int32))
        elif kind == "hex":
            lines = "\n".join(f"{int(v) & 0xFFFFFFFF:08x}" for v in d)
            (folder / f"{name}.d.hex").write_text(f"// d\n{lines}\n")
        else:
            lines = "\n".join(f"{n},{int(v)}" for n, v in enumerate(d))
            (folder / f"{name}.d.csv").write_text(f"row,d\n{lines}\n")


@pytest.mark.parametrize("kind", ["npz", "hex", "csv"])
def test_files_find_what_calls_find(tmp_path, kind):
    asked = emit(tmp_path, formats="int8", depths=(16,))
    for _ in range(6):
        answer(tmp_path / f"round{asked.round}", asked.files, kind)
        found = read_answers(tmp_path)
        if not isinstance(found, Asked):
            break
        assert found.round == asked.round + 1
        asked = found
    direct = probe(machine, formats="int8", depths=(16,), rows=16)
    assert found.target.rules == direct.target.rules
    assert found.undecided == direct.undecided
    files = save(found, tmp_path)
    assert [f.name for f in files] == ["probed.toml", "evidence.csv", "vectors.npz"]


def test_the_hex_files_hold_the_codes_of_the_npz(tmp_path):
    emit(tmp_path, formats=("uint8", "int8"), depths=(16,))
    where = tmp_path / "round1"
    with np.load(where / "start.npz") as npz:
        b = npz["b"]
    lines = (where / "start_b.hex").read_text().splitlines()
    assert lines[0] == f"// b: 8 bits, shape {b.shape[0]} x 16, row-major"
    assert [int(line, 16) for line in lines[1:]] == b.view(np.uint8).ravel().tolist()
    assert len((where / "start.csv").read_text().splitlines()) == len(b) + 1
    half = len(b) // 2
    assert (b[:half] == b[half:][::-1]).all()  # each dot product twice


def test_too_few_answers_name_the_stimulus_and_keep_the_rest(tmp_path):
    asked = emit(tmp_path, formats="int8", depths=(16,))
    where = tmp_path / "round1"
    answer(where, asked.files)
    with np.load(where / "edges.d.npz") as npz:
        d = npz["d"]
    np.savez(where / "edges.d.npz", d=d[:-3])
    with pytest.raises(ProbeError, match="stimulus edges") as caught:
        read_answers(tmp_path)
    assert caught.value.probe.target is not None
    (where / "edges.d.npz").unlink()
    with pytest.raises(ProbeError, match="stimulus edges"):
        read_answers(tmp_path)


def test_answers_that_change_are_named(tmp_path):
    asked = emit(tmp_path, formats="int8", depths=(16,))
    answer(tmp_path / "round1", asked.files)
    file = tmp_path / "round1" / "start.d.npz"
    with np.load(file) as npz:
        d = npz["d"].copy()
    d[5] += 1
    np.savez(file, d=d)
    with pytest.raises(ProbeError, match="stimulus start 5"):
        read_answers(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("other.d.hex", "00\n", "answers stimuli that were not asked"),
        ("start.d.hex", "zz\n", "one word a line"),
        ("start.d.hex", "123456789ab\n" * 4, "start"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, name, text, words):
    emit(tmp_path, formats="int8", depths=(16,))
    (tmp_path / "round1" / name).write_text(text)
    with pytest.raises(NumsimError, match=words):
        read_answers(tmp_path)


def test_a_folder_of_another_machine_is_not_overwritten(tmp_path):
    emit(tmp_path, formats="int8", depths=(16,))
    with pytest.raises(NumsimError, match="another machine"):
        emit(tmp_path, formats="int16", depths=(16,))
    with pytest.raises(NumsimError, match="holds no stimuli"):
        read_answers(tmp_path / "round1")


def test_block_scales_lie_beside_the_codes(tmp_path):
    import numsim as ns
    from numsim.probe.machine import Batch, laid_out
    from numsim.probe.probe import machine_for

    scales = {"blocks": "float8_e4m3fn/16", "depths": (64,)}
    asked = emit(tmp_path, formats="float4_e2m1fn", **scales)
    seen = machine_for("float4_e2m1fn", None, True, (64,), scales["blocks"])
    unit = ns.get_target("nvidia.blackwell.tcgen05")
    where = tmp_path / "round1"
    assert (where / "steps_sa.hex").read_text().startswith("// sa: 8 bits, shape ")
    head = (where / "steps.csv").read_text().split("\n", 1)[0].split(",")
    assert len(head) == 2 + 2 * 64 + 2 * 4
    assert head[-1] == "sb3"
    for _ in range(6):
        where = tmp_path / f"round{asked.round}"
        for name in asked.files:
            with np.load(where / f"{name}.npz") as npz:
                x = {key: npz[key] for key in npz.files}
            c = x.pop("c").view(np.float32)
            d = laid_out(seen, Batch(name, c=c, **x)).answers(unit, seen)
            np.savez(where / f"{name}.d.npz", d=d)
        found = read_answers(tmp_path)
        if not isinstance(found, Asked):
            break
        asked = found
    assert found.target.rules[0][1].align_bits == 35
    assert found.right == found.asked
    with pytest.raises(NumsimError, match="another machine"):
        emit(tmp_path, formats="float4_e2m1fn", depths=(64,))
