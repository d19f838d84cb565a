"""How wide accumulators must be, and what narrow ones do: by K, on data and on synthetic sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.models import Model
from numsim.models.weights import wide
from numsim.quant import QTensor, Quant, quantize
from numsim.sweep.grid import Entry
from numsim.sweep.inputs import Inputs, split_name
from numsim.sweep.operators import ratio_db, tap_names
from numsim.sweep.units import units_of
from numsim.targets import Target, accumulator_bits, get_target, matmul
from numsim.targets.rules import adds_integers

COLUMNS = (
    "layer", "op", "K", "format", "target", "bits_bound", "bits_bound_l1", "bits_measured_peak",
    "rows_measured", "swamp_rate", "overflow_rate", "vrr_bits", "acc_bits", "overflow",
    "promote_every", "sqnr_db", "mean_signed_error",
)  # fmt: skip
ORDER_COLUMNS = ("layer", "op", "K", "format", "target", "order", "differing", "max_abs_rms")
SYNTHETIC = "normal"  # what results call the layer of synthetic sums
ROWS, OUTPUTS = 8, 16  # of a synthetic product
PROMOTIONS = (64, 128, 256, 512)
BELOW = 6  # bits below the measured peak at which narrow integer accumulators are tried
_LIMIT = 1 << 20  # products of one measurement on a network
_FATAL = 50.0  # of variance lost: the criterion of Sakr et al.


@cache
def vrr_bits(k: int) -> int:
    """Return the fraction bits of a float accumulator whose sums of `k` terms keep their variance.

    Examples
    --------
    >>> [vrr_bits(k) for k in (576, 2304, 4608, 65536)]
    [7, 8, 9, 11]
    """
    return next(bits for bits in range(1, 53) if k * (1 - _retained(bits, k)) < math.log(_FATAL))


def _retained(bits: int, k: int) -> float:
    """Return the variance retention ratio of Sakr et al., ICLR 2019, its simple form."""
    if k < 2:
        return 1.0
    steps = np.arange(1, k + 1, dtype=np.float64)
    tail = np.array([math.erfc(x) for x in 2.0**bits / np.sqrt(2.0 * steps)])  # 2 Q(2^m/sqrt(i))
    stops = tail[1:-1] * (1 - tail[:-2])
    whole = 1 - tail[-1]
    kept = float((steps[1:-1] * stops).sum()) + k * whole
    total = (float(stops.sum()) + whole) * k
    return kept / total if total > 0 else 0.0


def accumulator_rows(
    model: Model, inputs: Inputs, entries: list[Entry], targets: Iterable[str | Target] | None,
    batch: int, longest_k: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield rows of widths and errors: of each product of the network, and of synthetic sums.

    A row is one unit: that of the format as it is, then narrower (integers, down to `BELOW` bits
    below the measured peak, wrapping and saturating) or promoted (floats). Errors are those of the
    sum alone, against the exact sum of the same stored values.
    """
    for layer, op, a, b, entry in _products(model, inputs, entries, batch):
        yield from _rows(layer, op, a, b, entry, targets)
    draw = np.random.default_rng(0)
    for entry in entries:
        k = 64
        while k <= longest_k:
            x = draw.standard_normal((ROWS, k)).astype(np.float32)
            w = draw.standard_normal((OUTPUTS, k)).astype(np.float32)
            a, b = _stored(entry, x, w)
            yield from _rows(SYNTHETIC, "", a, b, entry, targets)
            k *= 4


def order_rows(
    model: Model, inputs: Inputs, entries: list[Entry], targets: Iterable[str | Target] | None,
    batch: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield how many results another order of the same sum changes: reversed, or split along K."""
    for layer, op, a, b, entry in _products(model, inputs, entries, batch):
        k = a.shape[-1]
        for called, unit in _units(entry, targets):
            plain = np.asarray(matmul(a, b, target=unit), np.float64)
            turned = _reversed(a), _reversed(b.T).T
            found: dict[str, Any] = {}
            found["reversed"] = np.asarray(matmul(*turned, target=unit), np.float64)
            for parts in (2, 4, 8):
                if k % parts == 0 and k // parts >= 16:
                    try:
                        split = unit.changed(split_k=parts, split_order="contiguous")
                    except NumsimError:
                        continue
                    result = matmul(a, b, target=split)
                    found[f"split_k={parts}"] = np.asarray(result, np.float64)
            rms = math.sqrt(float((plain * plain).mean())) or 1.0
            for order, other in found.items():
                yield {
                    "layer": layer, "op": op, "K": k, "format": entry.called, "target": called,
                    "order": order, "differing": float((other != plain).mean()),
                    "max_abs_rms": float(np.abs(other - plain).max()) / rms,
                }  # fmt: skip


def _reversed(q: QTensor) -> QTensor:
    """Return a tensor [.., K] with K backwards; scales of blocks go with their values."""

    def turned(x: Any) -> Any:
        wide = x is not None and np.ndim(x) == q.codes.ndim and np.shape(x)[-1] > 1
        return np.ascontiguousarray(x[..., ::-1]) if wide else x

    return replace(
        q, codes=np.ascontiguousarray(q.codes[..., ::-1]), scale=turned(q.scale),
        scale_codes=turned(q.scale_codes),
    )  # fmt: skip


def _products(
    model: Model, inputs: Inputs, entries: list[Entry], batch: int
) -> Iterator[tuple[str, str, QTensor, QTensor, Entry]]:
    names = [name for name in model.gemm_names() if f"{name}.weight" in model.tensors]
    run = inputs.run(model, slice(0, batch), None, tap_names(names, ("in",)))
    for name in names:
        if f"{name}.in" not in run.taps:
            continue
        x = np.asarray(run.taps[f"{name}.in"], np.float32)
        x = x.reshape(-1, x.shape[-1])
        w = np.asarray(wide(model.tensors[f"{name}.weight"]), np.float32)
        rows = max(1, min(len(x), _LIMIT // w.size))
        for entry in entries:
            yield (*split_name(name), *_stored(entry, x[:rows], w), entry)


def _stored(
    entry: Entry, x: NDArray[np.float32], w: NDArray[np.float32]
) -> tuple[QTensor, QTensor]:
    weights, activations = entry.quants(entry.granularities(None)[0], rounding="rne")
    raw = Quant("float32", "none")
    return quantize(x, activations or raw), quantize(w, weights or raw).T


def _units(entry: Entry, targets: Iterable[str | Target] | None) -> list[tuple[str, Target]]:
    chosen = (entry.unit,) if targets is None else tuple(targets)
    return [(called, unit) for called, _, unit in units_of(chosen)]


def _rows(
    layer: str, op: str, a: QTensor, b: QTensor, entry: Entry,
    targets: Iterable[str | Target] | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    k, blocks = a.shape[-1], a.scale_codes is not None
    bound = accumulator_bits(a.fmt, b.fmt, k=k)
    measured = None if blocks else accumulator_bits(_bare(a), _bare(b))
    exact = a.dequantize().astype(np.float64) @ b.dequantize().astype(np.float64)
    signal = float((exact * exact).sum())
    rms = math.sqrt(signal / exact.size)
    peak = measured.measured_peak if measured else None
    head = {
        "layer": layer, "op": op, "K": k, "format": entry.called, "bits_bound": bound.format_bound,
        "bits_bound_l1": measured.weight_bound if measured else None,
        "bits_measured_peak": peak,
        "rows_measured": a.shape[0], "vrr_bits": vrr_bits(k),
    }  # fmt: skip
    for called, unit in _units(entry, targets):
        integers = all(adds_integers(rule) for _, rule in unit.rules)
        for changes in _variants(unit, integers, k, peak):
            one = unit.changed(**changes) if changes else unit
            d, stats = matmul(a, b, target=one, stats=True)
            got = np.asarray(d, np.float64)
            lost = stats.overflows + stats.saturations + stats.wraps
            bits = next((r.acc_bits for _, r in one.rules if adds_integers(r)), None)
            words = "".join(f":{key}={value}" for key, value in changes.items())
            yield head | {
                "target": f"{called}{words}", "swamp_rate": stats.swamped / max(stats.products, 1),
                "overflow_rate": lost / max(stats.steps, 1), "acc_bits": bits,
                "overflow": changes.get("overflow"), "promote_every": one.promote_every,
                "sqnr_db": ratio_db(signal, float(((got - exact) ** 2).sum())),
                "mean_signed_error": float((got - exact).mean()) / rms if rms else None,
            }  # fmt: skip


def _bare(q: QTensor) -> QTensor:
    return QTensor(q.codes, q.fmt)


def _variants(unit: Target, integers: bool, k: int, peak: int | None) -> list[dict[str, Any]]:
    """Return what is changed of a unit, one row each; first nothing."""
    found: list[dict[str, Any]] = [{}]
    if integers and peak is not None and unit == get_target("ideal.int"):
        narrow = range(max(8, peak - BELOW), peak + 1)
        found += [
            {"acc_bits": bits, "overflow": how} for how in ("wrap", "saturate") for bits in narrow
        ]
    elif not integers and unit.promote_every is None:
        found += [{"promote_every": every} for every in PROMOTIONS if every < k]
    return found
