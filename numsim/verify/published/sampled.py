"""Figures of random samples: errors of block formats, and of Hopper's FP8 accumulator."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.metrics import sqnr_db
from numsim.quant import QUANTS, Quant, quantize
from numsim.targets import get_target, matmul

_MX = {
    "mxfp8": "float8_e4m3fn", "mxint8": "q1.6", "mxfp6": "float6_e2m3fn", "mxint6": "q1.4",
    "mxfp4": "float4_e2m1fn", "mxint4": "q1.2",
}  # fmt: skip
_NV = {"nvfp4": "float4_e2m1fn", "nvint4": "int4"}
_DEPTH, _SIDE = 4096, 48  # of products


def figure(name: str) -> float:
    """Return one figure by its id, of fixed seeds.

    >>> round(figure("crest.normal.16"), 2)
    2.11
    """
    head, *words = name.split(".", 2)
    if head == "qsnr":
        return _qsnr(*words)
    if head == "clip":
        rule = _block_rule(words[0], "floor")
        x = _samples(words[1])
        q = quantize(x, rule)
        amax = np.abs(x.reshape(-1, 32)).max(axis=1)
        return 100 * float((amax > np.float32(rule.fmt.max) * np.ravel(q.scale)).mean())  # type: ignore[arg-type]
    if head == "crest":
        blocks = _samples("normal").astype(np.float64).reshape(-1, int(words[1]))
        rms = np.sqrt((blocks * blocks).mean(axis=1))
        return float((np.abs(blocks).max(axis=1) / rms).mean())
    if head == "hif4":
        return _hif4(words[0])
    if head in ("4over6", "if4"):
        return _two_ways(head, *name.split(".")[1:])
    if head == "scale":
        scale_format, block, sigma = name.split(".", 3)[1:]
        power = int(sigma.removeprefix("sigma2^"))
        rule = Quant(
            "float4_e2m1fn", block=int(block[1:]), scale_format=f"float8_{scale_format}",
            tensor_scale=None,
        )  # fmt: skip
        x = np.ldexp(_samples("normal", 1 << 18), power)
        return sqnr_db(x, quantize(x, rule))
    return _deepseek(".".join(words))


@cache
def _samples(kind: str, count: int = 1 << 21, seed: int = 1) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(count) if kind == "normal" else rng.laplace(size=count)
    return drawn.astype(np.float32)


def _block_rule(name: str, scale_rule: str) -> Quant:
    if name in _NV:
        return Quant(_NV[name], block=16, scale_format="float8_e4m3fn")
    return Quant(_MX[name], block=32, scale_format="float8_e8m0fnu", scale_rule=scale_rule)


@cache
def _db(kind: str, name: str, scale_rule: str) -> float:
    x = _samples(kind)
    q = quantize(x, _block_rule(name, scale_rule))
    if q.fmt.kind == "integer":  # symmetric: the least code is not used
        q = replace(q, codes=np.maximum(q.codes, -int(q.fmt.max * 2**q.fmt.bias)))
    return sqnr_db(x, q)


def _qsnr(which: str, name: str) -> float:
    if which == "even":
        return _db("normal", name, "even")
    rule, _, kind = which.partition("_")
    return _db("normal" if which == "rotated" else kind, name,
               "rceil" if which == "rotated" else rule)  # fmt: skip


def _mean_square(x: NDArray[np.float32], rule: Any) -> float:
    rest = x.astype(np.float64) - quantize(x, rule).dequantize()
    return float((rest * rest).mean())


def _hif4(what: str) -> float:
    if what == "db.normal" or what == "db":
        x = _samples("normal", 1 << 20)
        return sqnr_db(x, quantize(x, "hif4"))
    other = {
        "vs_nvfp4_direct": replace(QUANTS["nvfp4"], tensor_scale=None),
        "vs_nvfp4_pts": QUANTS["nvfp4"], "vs_mxfp4": QUANTS["mxfp4_e2m1"],
    }[what]  # fmt: skip
    ratios = []
    for power in range(3, 17):  # standard deviations 0.08 .. 655 of the authors' script
        drawn = _samples("normal", 1 << 18, seed=power) * np.float32(0.01 * 2**power)
        x = drawn.reshape(-1, 4096)
        ratios.append(_mean_square(x, other) / _mean_square(x, "hif4"))
    return float(1 / np.mean(ratios))


def _two_ways(head: str, *words: str) -> float:
    x = _samples("normal", 1 << 20)
    if head == "if4":
        rule, what = QUANTS["if4"], words[0]
    else:
        rule = replace(QUANTS["nvfp4"], scale_rule=f"4over6:{words[0]}", scale_max=float(words[1]))
        what = words[2]
    if what == "gain_db":
        return sqnr_db(x, quantize(x, rule)) - sqnr_db(x, quantize(x, "nvfp4"))
    codes = np.asarray(quantize(x, rule).scale_codes)
    if head == "if4":
        return float((codes >= 0x80).mean())
    six = quantize(x, replace(rule, scale_rule="amax")).scale_codes
    return float((codes != six).mean())


@cache
def _operands(what: str) -> tuple[Any, Any, NDArray[np.float64]]:
    rng = np.random.default_rng(5)
    shapes = ((_SIDE, _DEPTH), (_SIDE, _DEPTH))
    if what == "normal":
        values = [rng.standard_normal(s) for s in shapes]
    else:
        values = [rng.random(s) * (448.0 if what == "scaled" else 1.0) for s in shapes]
    rule = Quant("float8_e4m3fn", "none")
    a, b = (quantize(v.astype(np.float32), rule) for v in values)
    exact = a.dequantize().astype(np.float64) @ b.dequantize().astype(np.float64).T
    return a, b.T, exact


def _deepseek(what: str) -> float:
    kind, figure_of = what.split(".")
    changes: dict[str, Any] = {"promoted": {"promote_every": 128}}.get(kind, {})
    if figure_of in ("f14", "f15"):
        bits = int(figure_of[1:])
        changes = {"align_bits": bits, "keep_bits": bits}
    data = {"uniform_scaled": "scaled", "uniform_raw": "raw"}.get(kind, "normal")
    a, b, exact = _operands(data)
    got = matmul(a, b, target=get_target("nvidia.hopper.wgmma", **changes))
    rest = got.astype(np.float64) - exact
    rms = np.sqrt((exact * exact).mean())
    if figure_of == "rms":
        return 100 * float(np.sqrt((rest * rest).mean()) / rms)
    counted = np.abs(exact) > 0.1 * rms
    relative = 100 * rest[counted] / exact[counted]
    return float(relative.mean() if figure_of == "bias" else np.abs(relative).max())
