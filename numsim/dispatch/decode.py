"""Which kernel decodes a format."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.dispatch.workers import BLOCK, NONE, over_blocks
from numsim.formats import Format, get_format
from numsim.kernels.convert import decode as fast_decode


def decode_array(f: Format, codes: NDArray[Any], out: NDArray[Any]) -> None:
    """Decode codes that lie in the format's range into `out` (C order)."""
    worker = _decoder(f)

    def work(
        x: NDArray[Any], part: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        worker(x, part)
        return NONE

    over_blocks(codes, f.code_dtype, out.reshape(-1), work)


@cache
def float_codes(f: Format) -> fast_decode.Codes | None:
    """Return how a kernel reads the codes of a float of at most 16 bits, None for other formats."""
    single = f.value_dtype == np.float32
    if not (f.kind == "float" and f.bits <= 16 and f.zero and f.emin >= -126 and single):
        return None
    nan_from = {"ieee": f.max_code + 2, "all_ones": f.nan_code}.get(f.nan, -1)
    one_nan = f.nan_code if f.nan == "minus_zero" else -1
    return fast_decode.code_scalars(
        f.bits, f.precision, f.emin, f.signed, f.inf_code, nan_from, one_nan
    )


@cache
def _decoder(f: Format) -> Callable[[NDArray[Any], NDArray[Any]], object]:
    if f.kind == "integer" and f.value_dtype == np.float32 and f.bits <= 24:
        quantum = np.float32(2.0**-f.bias)
        return lambda x, out: fast_decode.decode_integer(x, out, quantum)
    if f.kind == "integer":
        unit = 2.0**-f.bias
        return lambda x, out: np.multiply(x, unit, out=out)
    if f == get_format("float32"):
        return lambda x, out: np.copyto(out.view(np.uint32), x)
    scalars = float_codes(f)
    if scalars is not None:
        return lambda x, out: fast_decode.decode_float(x, out.view(np.uint32), scalars)
    if f.bits <= 16:
        table = f.values().astype(f.value_dtype)
        unsigned = np.dtype(f"u{f.code_dtype.itemsize}")
        return lambda x, out: fast_decode.decode_table(x.view(unsigned), out, table)

    def wide(x: NDArray[Any], out: NDArray[Any]) -> None:
        for i in range(0, x.size, BLOCK):
            out[i : i + BLOCK] = f.decode_bits(x[i : i + BLOCK].astype(np.int64))

    return wide
