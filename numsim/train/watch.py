"""What happens to tensors on their way into a format: one row a tensor and step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode
from numsim.formats import Format
from numsim.nn.products import beyond
from numsim.quant import QTensor

Array = NDArray[Any]

# Columns of `Fit.tensors`: rates are shares of all elements, underflow of the non-zero ones.
TENSOR_COLUMNS = (
    "step", "name", "role", "format", "amax", "saturation_rate", "underflow_rate", "zero_rate",
    "moved_rate", "smallest", "limit", "histogram",
)  # fmt: skip


@dataclass
class Lost:
    """Counts the non-zero elements of gradients, and those that dgrad's operands lose."""

    elements: int = 0
    zeroed: int = 0

    def __call__(self, name: str, tensor: str, values: Array, q: QTensor) -> None:
        """Take one operand into account."""
        if tensor != "g":
            return
        live = values != 0
        self.add(int(np.count_nonzero(live)), int(np.count_nonzero(live & _is_zero(q))))

    def add(self, elements: int, zeroed: int) -> None:
        """Count elements that were stored elsewhere."""
        self.elements += elements
        self.zeroed += zeroed


@dataclass
class Watcher:
    """Makes a row of every operand of a step."""

    step: int
    lost: Lost
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, name: str, tensor: str, values: Array, q: QTensor) -> None:
        """Take one operand into account."""
        self.lost(name, tensor, values, q)
        self.rows.append(describe(self.step, name, tensor, values, q))


def _is_zero(q: QTensor) -> NDArray[np.bool_]:
    """Return which elements are stored as zero."""
    f = q.fmt
    if f.kind == "float" and f.has_negative_zero:
        half = q.codes.dtype.type((1 << (f.bits - 1)) - 1)
        return np.asarray((q.codes & half) == 0)
    if f.kind == "integer":
        return np.asarray(q.codes == 0)
    return np.asarray(decode(q.codes, f) == 0)


def histogram(values: Array) -> str:
    """Return how many elements have a magnitude from 2^e to below 2^(e + 1), for each such e.

    Zeros and values that are not finite are left out.

    >>> histogram(np.array([0.0, 0.75, -0.5, 3.0]))
    '2^-1:2 2^1:1'
    """
    live = np.abs(values[np.isfinite(values) & (values != 0)])
    found, counts = np.unique(np.frexp(live)[1] - 1, return_counts=True)
    return " ".join(f"2^{e}:{n}" for e, n in zip(found.tolist(), counts.tolist(), strict=True))


def limits(f: Format) -> tuple[float, float]:
    """Return the smallest positive and the largest value of a format."""
    return float(f.min_subnormal), float(f.max)


def describe(step: int, name: str, role: str, values: Array, q: QTensor) -> tuple[Any, ...]:
    """Return the row of a tensor: its amax, what storage clips and turns to zero.

    Saturated: beyond the largest value of the format under its scale. `smallest` and `limit` are
    the least positive and the largest value that the stored scale reaches, for the histogram of
    the values before they are stored.
    """
    size = max(values.size, 1)
    magnitude = np.abs(values)
    amax = float(magnitude.max(initial=0.0))
    scale = np.float64(1) if q.scale is None else np.asarray(q.element_scale(), np.float64)
    if q.tensor_scale is not None:
        scale = scale * np.float64(q.tensor_scale)
    least, most = limits(q.fmt)
    zero, live = _is_zero(q), magnitude != 0
    outside = int(np.count_nonzero(beyond(values, q)))
    lost = int(np.count_nonzero(live & zero)) / max(int(np.count_nonzero(live)), 1)
    return (
        step, name, role, q.fmt.name, amax, outside / size, lost,
        int(np.count_nonzero(zero)) / size, float("nan"),
        least * float(np.min(scale)), most * float(np.max(scale)), histogram(values),
    )  # fmt: skip


def moved(step: int, before: dict[str, Any], after: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return a row for each parameter: the share of its values that the update changed.

    Of a parameter that is stored in a format: the share of its codes.
    """
    rows: list[tuple[Any, ...]] = []
    nan = float("nan")
    for name, new in after.items():
        old = before[name]
        if isinstance(new, QTensor):
            was = old.codes if isinstance(old, QTensor) else np.asarray(old)
            now = new.codes if isinstance(old, QTensor) else new.dequantize()
            changed = np.count_nonzero(now != was) / max(new.codes.size, 1)
            row = describe(step, name, "parameter", new.dequantize(), new)
            rows.append((*row[:8], float(changed), *row[9:]))
            continue
        values = np.asarray(new)
        changed = np.count_nonzero(values != np.asarray(old)) / max(values.size, 1)
        amax = float(np.abs(values).max(initial=0.0))
        zero = float(np.count_nonzero(values == 0) / max(values.size, 1))
        kind = values.dtype.name
        rows.append((
            step, name, "parameter", kind, amax, 0.0, 0.0, zero, float(changed), nan, nan,
            histogram(values),
        ))  # fmt: skip
    return rows
