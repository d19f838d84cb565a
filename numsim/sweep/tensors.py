"""What ranges tensors have: crest factors by block, histograms, and what each format loses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.models import Model
from numsim.models.weights import wide
from numsim.quant import Quant, quantize, storage_losses
from numsim.sweep.grid import Entry
from numsim.sweep.inputs import Inputs, split_name
from numsim.sweep.operators import ratio_db, tap_names

BLOCKS = (16, 32)
STEP = 0.5  # of a histogram, in powers of two
_HALF = np.float32(0.70710678)  # sqrt(1/2): where the upper half of a binade begins
FORMAT_COLUMNS = (
    "format", "granularity", "block", "subnormal_rate", "underflow_rate", "saturation_rate",
    "sqnr_db",
)  # fmt: skip
COLUMNS = (
    "model", "layer", "op", "role", "n", "zeros", "amax", "rms", "crest_row_median",
    "crest_row_q75",
    *(f"crest_{b}_{which}" for b in BLOCKS for which in ("median", "q75", "max")),
    "kurtosis", "hist_lo", "hist_step", "hist_counts", *FORMAT_COLUMNS,
)  # fmt: skip


def tensor_rows(model: Model, inputs: Inputs, entries: list[Entry], batch: int) -> Iterator[Any]:
    """Yield a row for every tensor of a network and every way to store it.

    Tensors are those of the float64 reference on the first batch, rounded to float32: W stored
    matrices, A the left operands of products, O their results, KV the keys and values that ``qk``
    and ``pv`` multiply with. A tensor that several products share stands once, by the first.
    """
    names = model.gemm_names()
    run = inputs.run(model, slice(0, batch), None, tap_names(names, ("in", "operand", "out")))
    ways = {
        (entry.called, granularity): entry
        for entry in entries
        for granularity in entry.granularities(None)
    }
    seen: set[int] = set()
    for name in names:
        for role, x in _tensors(model, run.taps, name):
            if role != "W":  # arrays that `run` keeps, so no other has the number
                if id(x) in seen:
                    continue
                seen.add(id(x))
            values = np.asarray(x.swapaxes(-1, -2) if role == "KV" else x, np.float32)
            layer, op = split_name(name)
            head = {"model": model.name, "layer": layer, "op": op, "role": role} | shape_of(values)
            for (called, granularity), entry in ways.items():
                quant = _stored(entry, granularity, role)
                if quant is not None:
                    yield head | {"format": called} | lost(values, quant)


def _tensors(
    model: Model, taps: dict[str, NDArray[Any]], name: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (role, tensor); the summed dimension is the last, of KV the one before it."""
    if f"{name}.in" not in taps:
        return  # an expert to whom no token went
    operand = taps.get(f"{name}.operand")
    if operand is None:
        yield "W", wide(model.tensors[f"{name}.weight"])
    else:
        yield "KV", operand
    yield "A", taps[f"{name}.in"]
    yield "O", taps[f"{name}.out"]


def _stored(entry: Entry, granularity: str, role: str) -> Quant | None:
    weights, activations = entry.quants(granularity, rounding="rne")
    return weights if role == "W" else activations


def shape_of(x: NDArray[np.float32]) -> dict[str, Any]:
    """Return what is in a tensor, whatever stores it: the columns before `format`.

    A crest factor is the largest magnitude over the root mean square, of rows and of blocks of 16
    and 32 along the last dimension; rows and blocks of zeros have none.

    Examples
    --------
    >>> found = shape_of(np.array([[1.0, -1.0], [3.0, 4.0]], np.float32))
    >>> found["amax"], round(found["crest_row_median"], 4), found["hist_lo"], found["hist_counts"]
    (4.0, 1.0657, 0.0, '2;0;0;1;1')
    """
    values = x.astype(np.float64).reshape(-1, x.shape[-1])
    square = float((values * values).mean())
    spread = values - values.mean()
    variance = float((spread * spread).mean())
    found: dict[str, Any] = {
        "n": values.size, "zeros": int((values == 0).sum()), "amax": float(np.abs(values).max()),
        "rms": square**0.5,
    }  # fmt: skip
    crest = _crest(values, values.shape[1])
    found |= {"crest_row_median": _quantile(crest, 0.5), "crest_row_q75": _quantile(crest, 0.75)}
    for block in BLOCKS:
        crest = _crest(values, block)
        for word, q in (("median", 0.5), ("q75", 0.75), ("max", 1.0)):
            found[f"crest_{block}_{word}"] = _quantile(crest, q)
    found["kurtosis"] = float((spread**4).mean()) / variance**2 if variance > 0 else None
    low, counts = _histogram(values)
    words = ";".join(str(n) for n in counts)
    return found | {"hist_lo": low, "hist_step": STEP, "hist_counts": words}


def _crest(values: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Return the crest factors of blocks; a last block that is shorter counts like the others."""
    found = []
    for start in range(0, values.shape[1], block):
        part = values[:, start : start + block]
        rms = np.sqrt((part * part).mean(axis=1))
        top = np.abs(part).max(axis=1)
        found.append(top[rms > 0] / rms[rms > 0])
    return np.concatenate(found)


def _quantile(values: NDArray[np.float64], q: float) -> float | None:
    return float(np.quantile(values, q)) if values.size else None


def _histogram(values: NDArray[np.float64]) -> tuple[float | None, list[int]]:
    """Return log2 of where the first bin begins, and counts of magnitudes in half binades."""
    parts, exponents = np.frexp(np.abs(values[values != 0]))
    if not parts.size:
        return None, []
    bins = 2 * (exponents.astype(np.int64) - 1) + (parts >= _HALF)
    low = int(bins.min())
    return low * STEP, np.bincount(bins - low).tolist()


def lost(x: NDArray[np.float32], quant: Quant) -> dict[str, Any]:
    """Return what storing a tensor loses: shares of its nonzero values, and the SQNR in dB."""
    stored = quantize(x, quant, axis=-1)
    values = stored.dequantize().astype(np.float64)
    saturated, underflowed = storage_losses(x, quant)
    codes = np.abs(stored.values().astype(np.float64))
    small = quant.fmt.has_subnormals and (codes > 0) & (codes < quant.fmt.min_normal)
    nonzero = int((x != 0).sum())
    wide = x.astype(np.float64)
    noise = float(((values - wide) ** 2).sum())
    return {
        "granularity": quant.granularity,
        "block": None if quant.block is None else str(quant.block),
        "subnormal_rate": float(np.sum(small)) / nonzero if nonzero else 0.0,
        "underflow_rate": underflowed,
        "saturation_rate": saturated,
        "sqnr_db": ratio_db(float((wide * wide).sum()), noise),
    }
