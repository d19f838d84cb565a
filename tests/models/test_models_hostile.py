"""Model folders that mean harm: one sentence each, no wait, and this process goes on."""

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from numsim.data import bundled_model_dir, bundled_text
from numsim.errors import NumsimError
from numsim.models import load_model, load_text_tools, tokens
from numsim.models.config import read_arch
from numsim.models.families import FAMILIES
from numsim.models.tokenizer_process import _answer, _encode

BUNDLED = bundled_model_dir()
PUBLISHED = Path(__file__).parents[1] / "data" / "families"
CONFIG = (BUNDLED / "config.json").read_text()


def folder_with(into, change=None, text=None):
    """Copy the bundled folder; change its tokenizer, or replace the text of it."""
    shutil.copytree(BUNDLED, into, dirs_exist_ok=True)
    settings = json.loads((into / "tokenizer.json").read_text())
    (into / "tokenizer.json").write_text(json.dumps(settings | (change or {})))
    if text is not None:
        (into / "tokenizer.json").write_text(text)
    return into


def replacing(*pairs):
    steps = [{"type": "Replace", "pattern": {"String": a}, "content": b} for a, b in pairs]
    return {"normalizer": {"type": "Sequence", "normalizers": steps}}


@pytest.mark.parametrize(
    ("change", "text", "why"),
    [
        # 'l' becomes 10**12 letters: more memory than the process may have
        (replacing(*[("l", "l" * 1000)] * 4), None, r"ended its process \(Aborted.* MiB"),
        (replacing(("l", "l " * 5000)), None, "makes [0-9]+ tokens of 60 characters"),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////f" + "A" * 91}},
            None, "ended its process",
        ),  # a panic that cannot be caught
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}},
            None, "index out of bounds",
        ),  # one that can
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}, None, "UNK"),
        (None, '{"normalizer":' + '{"type":"Sequence","normalizers":[' * 10**5, "recursion limit"),
        (None, "null", "expected struct"),
        (None, "\0" * 100, "expected value"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_panics_or_explodes_ends_its_own_process(
    tmp_path, change, text, why, monkeypatch
):
    monkeypatch.setattr(tokens, "START_BYTES", 1 << 28)  # so that the machine has less to do
    folder = folder_with(tmp_path, change, text)
    with pytest.raises(NumsimError, match=f"not a usable tokenizer: .*{why}") as caught:
        load_text_tools(folder).ids("hello world " * 5)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_does_not_end_is_ended(tmp_path, monkeypatch):
    program = tmp_path / "sleeps.py"
    program.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(tokens, "PROGRAM", program)
    monkeypatch.setattr(tokens, "START_S", 0.3)
    with pytest.raises(NumsimError, match="did not end within 0 s"):
        load_text_tools(BUNDLED)


def test_text_that_is_no_unicode_is_not_the_tokenizers_fault():
    with pytest.raises(NumsimError, match="half of a surrogate pair at character 1"):
        load_text_tools(BUNDLED).ids("a\ud800")


def test_a_limit_tokenises_a_beginning_and_gives_the_ids_of_the_whole():
    text, tools = bundled_text(), load_text_tools(BUNDLED)
    whole = tools.ids(text)
    for limit in (1, 2, 5, 50, 333, 5000, 10**6):
        assert np.array_equal(tools.ids(text, limit=limit), whole[:limit])
    assert np.array_equal(tools.ids("one two" * 400, limit=9), tools.ids("one two" * 400)[:9])

    seen = []

    class Counting:
        def encode(self, part, add_special_tokens):
            seen.append(part)
            return type("", (), {"ids": list(range(len(part.split())))})

    words = "word " * 100_000
    assert _encode(Counting(), words, False, 10).ids[:10] == list(range(10))
    assert [len(part) for part in seen] == [294, 589]  # 4 and 8 characters of each of 74 tokens
    assert not any(part.endswith(" ") for part in seen)


def test_sentences_end_where_there_are_tokens_enough():
    tools = load_text_tools(BUNDLED)
    one = len(tools.sentences(["one two three"], 99)[0])
    assert len(tools.sentences(["one two three"] * 9, 99, total=2 * one)) == 3
    assert len(tools.sentences(["one two three"] * 9, 99)) == 9
    asked = {"path": str(BUNDLED / "tokenizer.json"), "special": True, "limit": None}
    asked |= {"segments": False}
    head, ids = _answer(asked | {"texts": ["one", "one two"], "longest": 1, "total": None})
    assert (head["counts"], len(ids)) == ([1, 1], 2)
    assert [list(x) for x in tools.all_ids(["one", "", "one two"])] == [
        tools.ids("one").tolist(), [], tools.ids("one two").tolist(),
    ]  # fmt: skip
    assert tools.all_ids([]) == []


def test_windows_begin_with_what_the_user_says(tmp_path):
    folder = folder_with(tmp_path)
    text = "one two three four five six seven"
    config = json.loads(CONFIG) | {"bos_token_id": None, "eos_token_id": [7, 8]}
    (folder / "config.json").write_text(json.dumps(config))
    tools = load_text_tools(folder)
    with pytest.raises(
        NumsimError, match=r"names no bos_token_id, .*with eos_token_id 7 \(eos\) or"
    ):
        tools.windows(text, 4)
    ids = tools.ids(text)
    assert tools.windows(text, 4, start="eos").tolist() == [
        [7, *ids[i : i + 3]] for i in range(0, len(ids) // 3 * 3, 3)
    ]
    assert tools.windows(text, 4, start="none").tolist() == [
        [*ids[i : i + 4]] for i in range(0, len(ids) // 4 * 4, 4)
    ]
    with pytest.raises(NumsimError, match="gives 1 token, and none that can be scored"):
        tools.windows(np.array([5]), 4, start="none")
    with pytest.raises(NumsimError, match="start is one of bos, eos, none; got 'x'"):
        tools.windows(text, 4, start="x")
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(NumsimError, match=r"begin them with nothing \(none\): --window-start"):
        load_text_tools(folder).windows(text, 4)
    with pytest.raises(NumsimError, match="names no eos_token_id"):
        load_text_tools(folder).windows(text, 4, start="eos")
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 4096}))
    with pytest.raises(NumsimError, match=r"eos_token_id, which begins .*config.json has 4096"):
        load_text_tools(folder).windows(text, 4, start="eos")


def header(path, text, data=b""):
    text = text.encode() if isinstance(text, str) else text
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(begin, end, shape=(1,)):
    return f'{{"dtype":"F32","shape":{list(shape)},"data_offsets":[{begin},{end}]}}'


@pytest.mark.parametrize(
    ("text", "data", "match"),
    [
        (f'{{"a":{entry(0, 4)},"a":{entry(0, 4)}}}', b"\0" * 4, "name each tensor once; .*'a'"),
        (f'{{"a":{entry(0, 4)},"a":{entry(4, 8)}}}', b"\0" * 8, "each tensor once|whole safet"),
        (f'{{"a":{entry(0, 4)},"b":{entry(0, 4)}}}', b"\0" * 4, "whole safetensors file"),
        (f'{{"a":{entry(0, 8, (2,))},"b":{entry(4, 8)}}}', b"\0" * 8, "whole safetensors file"),
        (f'{{"a":{entry(0, 8)}}}', b"\0" * 8, "whole safetensors file"),
        (f'{{"a":{entry(0, 4)}}}', b"\0" * 3, "whole safetensors file"),
        (f'{{"a":{entry(0, 4)}}}', b"\0" * 9, "whole safetensors file"),
        (f'{{"a":{entry(8, 4)}}}', b"\0" * 8, "whole safetensors file"),
        (f'{{"a":{entry(0, 4, (2**63, 2**63))}}}', b"\0" * 4, "whole safetensors file"),
        (f'{{"a":{entry(0, 4, (-1,))}}}', b"\0" * 4, "whole safetensors file"),
        ('{"a":' * 10**5, b"", "whole safetensors file"),
        ("[]", b"", "whole safetensors file"),
        (b"\xff\xfe{}", b"", "whole safetensors file"),
        ('{"a":{"dtype":"F3","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4, "whole safetensors"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, text, data, match):
    (tmp_path / "config.json").write_text(CONFIG)
    header(tmp_path / "model.safetensors", text, data)
    with pytest.raises(NumsimError, match=match) as caught:
        load_model(tmp_path)
    assert len(str(caught.value)) < 500


def test_headers_of_gigabytes_are_refused_at_once(tmp_path):
    (tmp_path / "config.json").write_text(CONFIG)
    for size in (2**33, 2**63, 2**64 - 1):
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", size) + b"{")
            file.truncate(2**33 + 8)  # a hole: no disk is used
        with pytest.raises(NumsimError, match="whole safetensors file"):
            load_model(tmp_path)


def test_files_of_json_that_mean_harm_are_refused(tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    for text, match in (
        ("[" * 10**6, "must be JSON"),
        ('{"a":' * 10**5, "must be JSON"),
        ('{"vocab_size":' + "9" * 5000 + "}", "must be JSON"),
        (b"\xff\xfe\x00", "must be JSON"),
        ("[]", "must hold a table"),
        ('{"model_type": {}}', "model_type must be"),
        ('{"model_type": "llama\x1b[31m"}', "must be JSON"),
        (json.dumps({"model_type": "x" * 10**6}), "model_type must be"),
        (json.dumps(json.loads(CONFIG) | {"\x1b[31mred": 1}), r"unknown: '\\x1b\[31mred'"),
        (json.dumps(json.loads(CONFIG) | {"x" * 10**6: 1}), "unknown: 'xxx"),
        (json.dumps(json.loads(CONFIG) | {f"k{i}": 1 for i in range(10**4)}), "and 9990 more"),
        (json.dumps(json.loads(CONFIG) | {"architectures": ["x" * 10**6]}), "architectures must"),
    ):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(NumsimError, match=match) as caught:
            load_model(tmp_path / "m")
        assert len(str(caught.value)) < 1200
        assert "\x1b" not in str(caught.value)
    for depth in range(900, 1000):  # some can be read, and not printed
        nested = "[" * depth + "]" * depth
        text = CONFIG.replace('"rope_theta": 10000.0', f'"rope_theta": {nested}')
        assert text != CONFIG
        path.write_text(text)
        with pytest.raises(NumsimError):
            load_model(tmp_path / "m")
        path.write_text(f'{{"model_type": {nested}}}')
        with pytest.raises(NumsimError):
            load_model(tmp_path / "m")
    with path.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(NumsimError, match="has more than 67108864 bytes"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "nowhere", "device"])
def test_files_that_are_none_are_refused_without_opening_them(tmp_path, name, kind):
    shutil.copytree(BUNDLED, tmp_path / "m")
    path = tmp_path / "m" / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path.name, "nowhere": "x", "device": "/dev/zero"}[kind])
    for call in (load_model, load_text_tools)[: 1 + (name == "config.json")]:
        with pytest.raises(NumsimError, match=r"is not a file|must be files"):
            call(tmp_path / "m")
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(NumsimError, match="which is not a folder"):
        load_model(loop)


def test_a_pipe_in_place_of_a_tokenizer_is_none(tmp_path):
    folder = folder_with(tmp_path)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    assert load_text_tools(folder).tokenizer is None


def test_names_of_tensors_do_not_reach_the_terminal(tmp_path):
    shutil.copytree(BUNDLED, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    own = load_file(path)
    save_file(own | {"\x1b[31m": np.zeros(1), "x" * 10**5: np.zeros(1)}, path)
    with pytest.raises(NumsimError, match=r"surplus '\\x1b\[31m'") as caught:
        load_model(tmp_path)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("count", [0, -1, 2**63, 2**70, 2.0, "x", True])
def test_a_wrong_number_of_tokens_is_not_the_tokenizers_fault(count):
    # "not a usable tokenizer: int too big to convert; download it again"; 0 was no limit at all
    tools = load_text_tools(BUNDLED)
    for call, what in (
        (lambda: tools.ids("a b", limit=count), "ids: limit"),
        (lambda: tools.windows("a b c", 4, limit=count), "windows: limit"),
        (lambda: tools.sentences(["a b"], count), "sentences: longest"),
        (lambda: tools.batch(["a b"], count), "batch: longest"),
    ):
        with pytest.raises(NumsimError, match=f"^{what} is 1 token or more"):
            call()
    with pytest.raises(NumsimError, match="ids: text is a str"):
        tools.ids(5)
    assert tools.batch(["a b c d"], np.int64(3))["tokens"].shape == (1, 3)
    assert tools.ids("a b c d", limit=np.int32(2)).size == 2


@pytest.mark.parametrize("name", ["bloom", "falcon_rw", "mpt"])
def test_heads_are_compared_with_tensors_before_a_number_is_made_for_each(tmp_path, name):
    """Slopes of 10**8 heads take hours."""
    folder = PUBLISHED / name
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size", "n_head", "num_attention_heads", "d_model", "n_heads"} & set(config)
    many = dict.fromkeys(sizes | {"hidden_size"} & set(config), 10**8)
    (tmp_path / "config.json").write_text(json.dumps(config | many))
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(NumsimError, match=r"expected \[\d+, 100000000\]"):
        load_model(tmp_path)


def test_a_list_of_layers_is_read_once(tmp_path):
    """Not once for each of them, which takes a minute for 19,000."""
    config = json.loads((PUBLISHED / "llama4_text" / "config.json").read_text())
    many = {"num_hidden_layers": 19_000, "no_rope_layers": [1, 0] * 9500, "num_local_experts": 1}
    many |= {"layer_types": "absent", "moe_layers": [], "num_experts_per_tok": 1}
    config = {k: v for k, v in (config | many).items() if v != "absent"}
    arch = read_arch(config, FAMILIES["llama4_text"])
    assert arch.chunks[:3] == (arch.chunks[0], None, arch.chunks[0])
    with pytest.raises(NumsimError, match=r"no_rope_layers must be a 1 .* for each of 19000"):
        read_arch(config | {"no_rope_layers": [1, 0]}, FAMILIES["llama4_text"])
