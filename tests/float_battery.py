"""What public calls give for numbers that flushing or another rounding would change.

``python float_battery.py STATE`` sets a state before numsim is imported, and prints the digest of
every result and the state that is left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import float_states
import numpy as np


def _numbers() -> np.ndarray[Any, Any]:
    bits = (np.arange(128, dtype=np.uint64) * 0x9E3779B97F4A7C15 >> np.uint64(33)).astype(np.uint32)
    bits[:48] &= np.uint32(0x7FFFFF)  # subnormal
    bits[48:] = (bits[48:] & np.uint32(0x807FFFFF)) | np.uint32(0x3F000000)
    return bits.view(np.float32)


# Inputs are made while this is imported, before a state is set
X = _numbers()
WIDE = X.astype(np.float64) * 1.1
NEAR = X[:64] * np.float32(1.1)
SMALL = np.full((4, 32), 62137, np.uint32).view(np.float32)  # 8.7e-41
SCALES = {s: np.float32(s) for s in (1e-21, 0.3, 1e-5, 1.1e-20)}


def battery() -> dict[str, Callable[[], Any]]:
    """Return the calls by name."""
    import numsim as ns
    from numsim import metrics
    from numsim.data import bundled_model_dir
    from numsim.explain import explain_cast

    x = X
    codes = np.arange(128, dtype=np.int64)

    def own(name: str) -> Any:  # no limit of it is known yet
        return dataclasses.replace(ns.get_format(name), name=f"own_{name}", source="a copy")

    def tensor(shape: tuple[int, int], fmt: str, scale: float | None = None) -> Any:
        n = shape[0] * shape[1]
        c = (np.arange(n) * 37 % 120).reshape(shape)
        if fmt == "bfloat16":
            c = (c + 1) * 0x55 + 0x1C00
        return ns.QTensor.from_codes(c, fmt, scale=None if scale is None else SCALES[scale])

    def mm(fmt: str, target: str, scale: float | None = None, **changes: Any) -> Any:
        unit = ns.get_target(target, **changes) if changes else target
        return ns.matmul(tensor((4, 64), fmt, scale), tensor((64, 4), fmt, scale), target=unit)

    def vectors() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            a, b = tensor((4, 32), "e4m3"), tensor((32, 4), "e4m3")
            ns.export_vectors(Path(folder) / "v", a, b, target="nvidia.hopper.wgmma")
            return b"".join(p.read_bytes() for p in sorted(Path(folder, "v").iterdir())
                            if p.suffix in (".txt", ".hex", ".json", ".toml"))  # fmt: skip

    def model() -> Any:
        net = ns.load_model(bundled_model_dir())
        recipe = ns.Recipe.uniform("e4m3", target="nvidia.hopper.wgmma")
        return [net.run([1, 5, 9, 300], r).logits for r in (None, recipe)]

    return {
        "cast": lambda: [ns.cast(x, f) for f in ("tfloat32", "bfloat16", "float16", "e4m3")],
        "cast_sr": lambda: ns.cast(x, "tfloat32", rounding="sr"),
        "cast_own": lambda: ns.cast(x, own("bfloat16")),
        "cast_posit": lambda: ns.cast(x, "posit12_es2"),
        "cast_float64": lambda: ns.cast(WIDE, "float32"),
        "encode_int": lambda: ns.encode(x, "q3.12", rounding="rna"),
        "decode": lambda: [ns.decode(codes, f) for f in ("bfloat16", "float32", "float16")],
        "values": lambda: [own(f).values() for f in ("bfloat16", "float16", "posit8_es4", "e4m3")],
        "limits": lambda: [
            [f.max, f.min, f.min_normal, f.min_subnormal, f.emin, f.emax, str(f.value_dtype)]
            for f in map(own, ("float32", "bfloat16", "posit12_es4", "float8_e8m0fnu"))
        ],
        "quantize": lambda: [
            (q.codes, q.scale, q.dequantize(), q.values(), q.element_scale())
            for q in (ns.quantize(SMALL, r) for r in ("e4m3", "int8", "mxfp8_e4m3", "nvfp4"))
        ],
        "scales_after": lambda: [mm("e4m3", "nvidia.hopper.wgmma", s) for s in (1e-21, 0.3, 1e-5)],
        "promote": lambda: mm("bfloat16", "ideal.mac", promote_every=16),
        "units": lambda: [
            mm("bfloat16", t)
            for t in ("ideal.fp32", "ideal.exact", "ideal.mac", "nvidia.ampere.mma",
                      "nvidia.hopper.wgmma", "amd.cdna3.mfma", "x86.vdpbf16ps", "tpu.mxu_bf16")
        ],
        "integers": lambda: mm("int8", "ideal.int", 1.1e-20),
        "stats": lambda: ns.matmul(
            tensor((4, 32), "e4m3"), tensor((32, 4), "e4m3"), target="ideal.mac", stats=True
        ),
        "epilogue": lambda: ns.epilogue(
            x.reshape(4, 32), alpha=1.1, out_format="float16", bias=x[-32:]
        ),
        "requantize": lambda: ns.requantize(
            np.arange(64, dtype=np.int32) * 1001, multiplier=1 << 30, shift=5
        ),
        "accumulator_bits": lambda: repr(
            ns.accumulator_bits(tensor((4, 32), "int8"), tensor((32, 4), "int8"))
        ),
        "vectors": vectors,
        "lfsr": lambda: ns.lfsr(32),
        "explain": lambda: explain_cast(1.1e-40, "tfloat32"),
        "metrics": lambda: [
            getattr(metrics, n)(x[:64], NEAR)
            for n in ("sqnr_db", "mse", "max_abs", "cosine", "max_ulp")
        ],
        "model": model,
    }  # fmt: skip


def flat(value: Any) -> bytes:
    """Return the bits of a result."""
    if isinstance(value, np.ndarray):
        return str(value.dtype).encode() + value.tobytes()
    if isinstance(value, (list, tuple)):
        return b"".join(map(flat, value))
    return value if isinstance(value, bytes) else repr(value).encode()


def digests() -> dict[str, str]:
    """Run everything; return a digest by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = {name: call() for name, call in battery().items()}
    return {name: hashlib.sha256(flat(r)).hexdigest()[:16] for name, r in results.items()}


if __name__ == "__main__":
    word = float_states.STATES.get(sys.argv[1])
    if word is not None:
        float_states.put(word)
    found = digests()
    left = float_states.state()
    if word is not None:
        float_states.put(0x1F80 if float_states.X86 else 0)  # printing is not what is tested
    sys.stdout.write(repr(found | {"state": left}))
