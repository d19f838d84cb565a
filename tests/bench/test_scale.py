"""The folder of experts that is larger than memory, small: what it writes, reads and keeps."""

import numpy as np

from numsim.bench.scale import MoeSize, main, write_moe
from numsim.models import describe_model, load_model
from numsim.quant import QTensor

SMALL = MoeSize(2, 64, 8, 1, 32, 2, 1, 32, 64)


def test_experts_are_read_when_a_token_is_routed_to_them(tmp_path):
    """And let go again where the limit says so, with the same bits."""
    total = write_moe(tmp_path / "moe", SMALL)
    found = describe_model(tmp_path / "moe")
    assert sum(t.bytes for t in found.stored) == total
    assert found.arch.moe.experts == 8
    model, seen = load_model(tmp_path / "moe"), []
    assert isinstance(model.tensors["layers.1.experts.7.up_proj.weight"], QTensor)
    ids = np.arange(5)[None]
    run = model.run(
        ids, model.recipe(), taps=["layers.*.router.experts"], tell=lambda *one: seen.append(one)
    )
    assert seen == [("layers.0", 2), ("layers.1", 2)]
    read = {key[0] for key in model.cache.items if ".experts." in str(key[0])}
    chosen = {
        f"layers.{i}.experts.{e}.{part}_proj.weight"
        for i in range(2)
        for e in run.taps[f"layers.{i}.router.experts"].ravel()
        for part in ("gate", "up", "down")
    }
    assert read == chosen
    assert len(chosen) < 2 * 8 * 3
    small = load_model(tmp_path / "moe", memory_limit="40kB")
    assert np.array_equal(small.run(ids, small.recipe()).logits, run.logits)
    assert small.cache.used_bytes <= 40_000 < model.cache.used_bytes


def test_the_script_removes_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("numsim.bench.scale.MoeSize", lambda layers=1: SMALL)
    folder = tmp_path / "moe"
    monkeypatch.setattr("sys.argv", ["scale", str(folder), "--tokens", "4", "--limit", "1MB"])
    main()
    said = capsys.readouterr().out
    assert "layers.1 of 2" in said
    assert "4 tokens" in said
    assert "logits finite: True" in said
    assert not folder.exists()
