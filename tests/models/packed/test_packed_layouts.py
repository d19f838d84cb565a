"""Layouts in other settings than the peers' data: widths, groups, orders, each packed plainly."""

import json

import ml_dtypes
import numpy as np
import pytest
from packing import (
    E4M3,
    FP4,
    base,
    dense,
    dense32,
    packed_folder,
    padded32,
    save,
    scaled,
    some_scales,
)

from numsim.models import load_model
from numsim.quant import Quant

IDS = np.arange(1, 11)[None]


def same(folder, numbers, like=None):
    """Check every weight bit by bit, and the logits of the whole network."""
    model = load_model(folder)
    for name, want in numbers.items():
        q = model.tensors[name]
        assert np.array_equal(q.dequantize(), want), name
        assert q.codes.shape == want.shape
    config, tensors, _ = base()
    plain = load_model(save(folder.parent / "plain", config, tensors | numbers))
    assert np.array_equal(model.run(IDS).logits, plain.run(IDS).logits)
    return model


def gptq(bits, group, *, zero_less=1, order=False, sym=False):
    def write(rng, out, into):
        size = into if group == -1 else group
        groups = np.arange(into) // size
        if order:
            groups = groups[rng.permutation(into)]
        codes = rng.integers(0, 1 << bits, (out, into))
        count = -(-into // size)
        zero = rng.integers(1 if zero_less else 0, 1 << bits, (out, count))
        if sym:
            zero[:] = 1 << (bits - 1)
        scale = some_scales(rng, (out, count))
        return {
            ".qweight": dense32(codes, bits).T,
            ".qzeros": dense32((zero - zero_less).T, bits),
            ".scales": scale.T,
            ".g_idx": groups.astype(np.int32),
        }, scaled(codes, scale, zero, groups)

    return write


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq_of_any_width_reads_fields_across_words(tmp_path, bits, version):
    less = 1 if version == "gptq" else 0
    table = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": version}
    folder, numbers = packed_folder(tmp_path / "m", gptq(bits, 32, zero_less=less), table)
    model = same(folder, numbers)
    assert model.tensors["layers.0.q_proj.weight"].fmt.name == f"uint{bits}"


@pytest.mark.parametrize("group", [16, 64, -1])
def test_gptq_with_scattered_groups_scales_each_column_by_its_own(tmp_path, group):
    table = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": True}
    folder, numbers = packed_folder(tmp_path / "m", gptq(4, group, order=True), table)
    same(folder, numbers)


def test_gptq_by_an_old_table_beside_the_weights(tmp_path):
    folder, numbers = packed_folder(tmp_path / "m", gptq(4, 32, sym=True), None)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    same(folder, numbers)


@pytest.mark.parametrize("group", [16, 32, -1])
def test_awq_interleaves_eight_columns_of_outputs(tmp_path, group):
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def words(codes):  # [n, out] -> [n, out / 8]
        each = codes.reshape(len(codes), -1, 8)[:, :, list(order)]
        return dense32(each.reshape(len(codes), -1), 4)

    def write(rng, out, into):
        size = into if group == -1 else group
        codes = rng.integers(0, 16, (out, into))
        zero = rng.integers(0, 16, (out, -(-into // size)))
        scale = some_scales(rng, zero.shape)
        parts = {".qweight": words(codes.T), ".qzeros": words(zero.T), ".scales": scale.T}
        return parts, scaled(codes, scale, zero, np.arange(into) // size)

    table = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "GEMM"}
    folder, numbers = packed_folder(tmp_path / "m", write, table)
    same(folder, numbers)


def ct(weights, format_, inputs=None, **more):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors", "format": format_, "ignore": ["lm_head"],
        "config_groups": {"group_0": group}, "quantization_status": "compressed", **more,
    }  # fmt: skip


def words_writer(bits, group, *, zero=False, pack=dense32, order=False):
    half = 1 << (bits - 1)

    def write(rng, out, into):
        size = into if group == -1 else group
        groups = np.arange(into) // size
        groups = groups[rng.permutation(into)] if order else groups
        codes = rng.integers(-half, half, (out, into))
        scale = some_scales(rng, (out, -(-into // size)), ml_dtypes.bfloat16)
        zeros = rng.integers(-half, half, scale.shape) if zero else np.zeros(scale.shape, np.int64)
        parts = {
            ".weight_packed": pack(codes + half, bits),
            ".weight_scale": scale,
            ".weight_shape": np.array([out, into]),
        }
        if zero:
            parts[".weight_zero_point"] = pack((zeros + half).T, bits).T
        if order:
            parts[".weight_g_idx"] = groups.astype(np.int32)
        return parts, scaled(codes, scale, zeros, groups)

    return write


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("group", [16, 32, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_words_of_compressed_tensors_are_dense(tmp_path, bits, group, zero):
    weights = {"num_bits": bits, "type": "int", "symmetric": not zero, "group_size": group}
    writer = words_writer(bits, group, zero=zero)
    folder, numbers = packed_folder(tmp_path / "m", writer, ct(weights, "pack-quantized"))
    same(folder, numbers)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_words_of_older_files_leave_the_bits_that_hold_no_whole_code(tmp_path, bits, zero):
    weights = {"num_bits": bits, "type": "int", "symmetric": not zero, "group_size": 32}
    writer = words_writer(bits, 32, zero=zero, pack=padded32)
    folder, numbers = packed_folder(tmp_path / "m", writer, ct(weights, "pack-quantized"))
    same(folder, numbers)


def test_scattered_groups_with_zero_points_of_compressed_tensors(tmp_path):
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "group_size": 16}
    writer = words_writer(4, 16, zero=True, order=True)
    folder, numbers = packed_folder(tmp_path / "m", writer, ct(weights, "pack-quantized"))
    same(folder, numbers)


def test_groups_that_were_never_filled_in_follow_each_other(tmp_path):
    def write(rng, out, into):
        parts, numbers = words_writer(4, 32)(rng, out, into)
        return parts | {".weight_g_idx": np.full(into, -1, np.int32)}, numbers

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32}
    folder, numbers = packed_folder(tmp_path / "m", write, ct(weights, "pack-quantized"))
    model = same(folder, numbers)
    assert model.tensors["layers.0.q_proj.weight"].block_shape == (1, 32)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
def test_whole_integers_with_scales_of_every_shape(tmp_path, strategy, zero):
    def write(rng, out, into):
        codes = rng.integers(-128, 128, (out, into)).astype(np.int8)
        tall, wide = {"tensor": (out, into), "channel": (1, into), "group": (1, 24)}.get(
            strategy, (40, 24)
        )
        shape = (-(-out // tall), -(-into // wide))
        scale = some_scales(rng, shape, np.float32)
        zeros = rng.integers(-128, 128, shape).astype(np.int8) if zero else np.zeros(shape)
        rows = np.arange(out) // tall
        numbers = scaled(codes, scale[rows], zeros[rows], np.arange(into) // wide)
        parts = {".weight": codes, ".weight_scale": scale}
        parts |= {".weight_zero_point": zeros} if zero else {}
        parts = {end: t.reshape(1) if t.size == 1 else t for end, t in parts.items()}
        return parts, numbers

    weights = {"num_bits": 8, "type": "int", "symmetric": not zero, "strategy": strategy}
    weights |= {"group_size": 24} if strategy == "group" else {}
    weights |= {"block_structure": [40, 24]} if strategy == "block" else {}
    folder, numbers = packed_folder(tmp_path / "m", write, ct(weights, "int-quantized"))
    same(folder, numbers)


def fp8(rng, out, into):
    codes = rng.integers(0, 256, (out, into)).astype(np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x38
    return codes.view(E4M3)


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.float8_e8m0fnu])
@pytest.mark.parametrize("tile", [(128, 128), (32, 48), (64, 16)])
def test_tiles_of_fp8_with_powers_of_two_end_short(tmp_path, tile, stored):
    def write(rng, out, into):
        shape = (-(-out // tile[0]), -(-into // tile[1]))
        scale = 2.0 ** rng.integers(-9, -4, shape)
        codes = fp8(rng, out, into)
        parts = {".weight": codes, ".weight_scale_inv": scale.astype(stored)}
        rows = np.arange(out) // tile[0]
        return parts, scaled(codes.astype(np.float32), scale[rows], 0, np.arange(into) // tile[1])

    table = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "scale_fmt": "ue8m0", "weight_block_size": list(tile), "modules_to_not_convert": None,
    }  # fmt: skip
    folder, numbers = packed_folder(tmp_path / "m", write, table)
    model = same(folder, numbers)
    acts = model.recipe().rule("layers.1.up_proj").activations
    assert acts == Quant("e4m3", block=tile[1], scale_format="e8m0", scale_rule="rceil")


@pytest.mark.parametrize("storage", ["uint8", "bfloat16"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block", [32, 64, 128, 4096])
def test_bitsandbytes_blocks_run_over_the_flattened_matrix(tmp_path, block, double, storage):
    table_ = np.linspace(-1, 1, 16).astype(np.float32) ** 3

    def write(rng, out, into):
        codes = rng.integers(0, 16, out * into)
        flat = (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)
        count = -(-out * into // block)
        state = {"quant_type": "fp4", "blocksize": block, "dtype": "bfloat16", "shape": [out, into]}
        if double:
            absmax = rng.integers(0, 256, count).astype(np.uint8)
            nested = rng.normal(size=256).astype(np.float32) / 50
            outer = rng.uniform(0.5, 1, -(-count // 8)).astype(np.float32)
            state |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": 0.25}
            scale = nested[absmax] * np.repeat(outer, 8)[:count] + np.float32(0.25)
        else:
            scale = absmax = rng.uniform(0.1, 0.2, count).astype(np.float32)
        flat = flat[:, None] if storage == "uint8" else flat.view(ml_dtypes.bfloat16)[:, None]
        parts = {".weight": flat, ".weight.absmax": absmax, ".weight.quant_map": table_}
        if double:
            parts |= {".weight.nested_absmax": outer, ".weight.nested_quant_map": nested}
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        parts[".weight.quant_state.bitsandbytes__fp4"] = text
        numbers = table_[codes] * np.repeat(scale, block)[: out * into]
        return parts, numbers.reshape(out, into)

    table = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
    table["bnb_4bit_quant_storage"] = storage
    folder, numbers = packed_folder(tmp_path / "m", write, table)
    same(folder, numbers)


@pytest.mark.parametrize(
    ("name", "word", "bits"), [("mxfp4", "mxfp4", 4), ("mxfp6", "mxfp6", 6), ("mxfp8", "mxfp8", 8)]
)
def test_mx_formats_have_exponents_of_scales(tmp_path, name, word, bits):
    values = {
        4: FP4,
        6: np.arange(64).astype(np.uint8).view(np.uint8),
        8: np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float64),
    }[bits]
    if bits == 6:
        values = np.arange(64, dtype=np.uint8).view(ml_dtypes.float6_e2m3fn).astype(np.float64)

    def write(rng, out, into):
        codes = rng.integers(0, 1 << bits, (out, into))
        if bits == 8:
            codes[(codes & 0x7F) == 0x7F] = 1
        power = rng.integers(118, 124, (out, into // 32)).astype(np.uint8)
        numbers = scaled(values[codes], 2.0 ** (power.astype(int) - 127), 0, np.arange(into) // 32)
        packed = {".weight_packed": dense(codes, bits, 8)} if bits < 8 else {}
        whole = {".weight": codes.astype(np.uint8).view(E4M3)} if bits == 8 else {}
        return packed | whole | {".weight_scale": power}, numbers

    weights = {"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32}
    inputs = weights | {"dynamic": True, "scale_dtype": "torch.uint8"}
    kind = f"{word}-quantized" if bits == 8 else f"{word}-pack-quantized"
    folder, numbers = packed_folder(tmp_path / "m", write, ct(weights, kind, inputs))
    model = same(folder, numbers)
    acts = model.recipe().rule("layers.0.q_proj").activations
    assert (acts.block, acts.scale_format, acts.scale_rule) == (32, "float8_e8m0fnu", "even")


def torchao(kind, tile, **more):
    def said(shapes):
        made = {"format": "pt"}
        for stem, (out, into) in shapes.items():
            block = [tile[0] or out, tile[1] or into]
            made[f"{stem}.weight"] = json.dumps(
                {"_type": kind, "_data": {"block_size": block} | more}
            )
        return made

    return said


@pytest.mark.parametrize("tile", [(1, 0), (0, 0), (32, 32)])
def test_torchao_says_its_blocks_in_the_metadata(tmp_path, tile):
    def write(rng, out, into):
        tall, wide = tile[0] or out, tile[1] or into
        scale = some_scales(rng, (-(-out // tall), -(-into // wide)), np.float32)
        codes = fp8(rng, out, into)
        numbers = scaled(
            codes.astype(np.float32), scale[np.arange(out) // tall], 0, np.arange(into) // wide
        )
        return {"._weight_qdata": codes, "._weight_scale": scale}, numbers

    acts = {"_type": "x", "_data": {"granularity": {"_type": "PerRow", "_data": {"dim": -1}}}}
    said = torchao("Float8Tensor", tile, act_quant_kwargs=acts)
    folder, numbers = packed_folder(
        tmp_path / "m", write, {"quant_method": "torchao"}, metadata=said
    )
    model = same(folder, numbers)
    rule = model.recipe().rule("layers.0.q_proj")
    assert rule.activations == Quant("e4m3", "per_token")
    assert str(rule.weights.granularity) == {1: "per_channel", 0: "per_tensor"}.get(
        tile[0], "per_block"
    )


def test_torchao_integers_with_zero_points(tmp_path):
    def write(rng, out, into):
        codes = rng.integers(-8, 8, (out, into)).astype(np.int8)
        scale = some_scales(rng, (out, into // 32), np.float32)
        zeros = rng.integers(-8, 8, scale.shape).astype(np.int8)
        parts = {"._weight_qdata": codes, "._weight_scale": scale, "._weight_zero_point": zeros}
        return parts, scaled(codes, scale, zeros, np.arange(into) // 32)

    said = torchao("IntxUnpackedToInt8Tensor", (1, 32), target_dtype={"_data": "int4"})
    folder, numbers = packed_folder(
        tmp_path / "m", write, {"quant_method": "torchao"}, metadata=said
    )
    model = same(folder, numbers)
    assert model.tensors["layers.0.q_proj.weight"].fmt.name == "int4"


def test_modules_in_groups_of_their_own_are_stored_apart(tmp_path):
    """A name wins over a pattern, a pattern over the class of all linears."""
    four = words_writer(4, 32)
    eight = words_writer(8, 16)

    def names(kind):
        config, tensors, shapes = base()
        rng, numbers = np.random.default_rng(3), {}
        for stem, (out, into) in shapes.items():
            parts, numbers[f"{stem}.weight"] = (eight if kind(stem) else four)(rng, out, into)
            tensors |= {stem + end: t for end, t in parts.items()}
        return config, tensors, numbers

    down = "model.layers.0.mlp.down_proj"
    config, tensors, numbers = names(lambda stem: "k_proj" in stem or stem == down)
    weights = {"type": "int", "symmetric": True, "strategy": "group"}
    table = ct({}, "pack-quantized")
    table["config_groups"] = {
        "a": {"targets": ["Linear"], "weights": weights | {"num_bits": 4, "group_size": 32}},
        "b": {
            "targets": ["re:.*k_proj", down], "weights": weights | {"num_bits": 8, "group_size": 16}
        },
    }  # fmt: skip
    same(save(tmp_path / "m", config | {"quantization_config": table}, tensors), numbers)
