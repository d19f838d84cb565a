"""Write packed checkpoints of random codes, plainly: what the readers of numsim are tested with.

Nothing here is shared with the package: fields are packed with Python integers, one at a time.
"""

import json
import pathlib

import ml_dtypes
import numpy as np

from numsim.models.stored import map_file, stored_tensors, view

DATA = pathlib.Path(__file__).parent / "data" / "packed"
BASE = DATA / "ct_w4a16_group"
DTYPES = {
    "uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64", "float16": "F16",
    "float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
E4M3 = ml_dtypes.float8_e4m3fn
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def save(folder, config, tensors, metadata=None):
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, data = {"__metadata__": metadata or {"format": "pt"}}, b""
    for name, t in tensors.items():
        raw = np.ascontiguousarray(t).tobytes()
        places = [len(data), len(data) + len(raw)]
        dtype = DTYPES[np.asarray(t).dtype.name]
        header[name] = {"dtype": dtype, "shape": list(np.shape(t)), "data_offsets": places}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def base():
    """Return config, plain tensors, and the shape of each linear of a small Llama."""
    config = json.loads((BASE / "config.json").read_text())
    del config["quantization_config"]
    stored = stored_tensors(BASE)
    maps = {t.file: map_file(t.file) for t in stored.values()}
    plain = {n: np.array(view(maps, t)) for n, t in stored.items() if t.dtype == "BF16"}
    plain = {n: t for n, t in plain.items() if not n.endswith("scale")}
    shapes = {
        n.removesuffix(".weight_shape"): tuple(int(s) for s in view(maps, t))
        for n, t in stored.items()
        if n.endswith("weight_shape")
    }
    return config, plain, shapes


def packed_folder(folder, writer, quantization, seed=0, metadata=None):
    """Write a network whose linears `writer(rng, out, in)` packs; return it, with their numbers.

    `writer` returns {end: array}, and the float32 weights that they stand for.
    """
    config, tensors, shapes = base()
    rng = np.random.default_rng(seed)
    numbers = {}
    for stem, (out, into) in shapes.items():
        parts, numbers[f"{stem}.weight"] = writer(rng, out, into)
        tensors |= {stem + end: array for end, array in parts.items()}
    if quantization is not None:
        config["quantization_config"] = quantization
    if callable(metadata):
        metadata = metadata(shapes)
    return save(folder, config, tensors, metadata), numbers


def dense(rows, bits, word=32):
    """Pack each row of codes into words, the lowest bits first, across the borders of words."""
    made = []
    for row in rows.tolist():
        whole = sum(code << (bits * i) for i, code in enumerate(row))
        count = -(-len(row) * bits // word)
        made.append([(whole >> (word * i)) & ((1 << word) - 1) for i in range(count)])
    return np.array(made, np.uint64).astype(np.uint32 if word == 32 else np.uint8)


def dense32(rows, bits):
    """Pack rows into int32."""
    return dense(rows, bits).view(np.int32)


def padded32(rows, bits):
    """Pack rows into int32, each field within one word."""
    each = 32 // bits
    made = []
    for row in rows.tolist():
        parts = [row[i : i + each] for i in range(0, len(row), each)]
        made.append([sum(c << (bits * i) for i, c in enumerate(part)) for part in parts])
    return np.array(made, np.uint64).astype(np.uint32).view(np.int32)


def scaled(codes, scale, zero=0, group=None):
    """Return (code - zero) x scale in float32, one rounding; scales by columns in groups."""
    scale, zero = np.asarray(scale, np.float64), np.asarray(zero, np.float64)
    if group is not None:
        scale = scale[:, group]
        zero = zero[:, group] if zero.ndim else zero
    return ((codes.astype(np.float64) - zero) * scale).astype(np.float32)


def some_scales(rng, shape, dtype=np.float16):
    """Return scales of about 0.02."""
    return (rng.uniform(0.01, 0.03, shape)).astype(dtype)
