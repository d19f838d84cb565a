"""Multiply-accumulates per second on one core, beside float32 BLAS and the installed peers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.bench.peers import check_repeats, installed
from numsim.convert import encode
from numsim.errors import NumsimError, UnvalidatedWarning
from numsim.formats import get_format
from numsim.kernels import jit
from numsim.kernels.ir import simd
from numsim.quant import QUANTS, QTensor, quantize
from numsim.targets import get_target
from numsim.targets.ops import matmul
from numsim.terminal import columns, say, width

Shape = tuple[int, int, int]
LARGE: Shape = (512, 512, 2048)
DECODE: Shape = (1, 4096, 4096)
ODD: Shape = (64, 2048, 256)  # a weight's gradient

# what is shown, unit, changes of the unit, formats or storage rules of a and b
UNITS: tuple[tuple[str, str, dict[str, Any], str, str], ...] = (
    ("int8 -> int32", "ideal.int", {}, "int8", "int8"),
    ("int8, 20-bit saturating", "ideal.int", {"acc_bits": 20, "overflow": "saturate"}, "int8",
     "int8"),
    ("u8 x s8, saturating pairs", "x86.vpmaddubsw", {}, "uint8", "int8"),
    ("Hopper wgmma FP8", "nvidia.hopper.wgmma", {}, "float8_e4m3fn", "float8_e4m3fn"),
    ("Ada FP8", "nvidia.ada.mma", {}, "float8_e4m3fn", "float8_e4m3fn"),
    ("Blackwell tcgen05 FP8", "nvidia.blackwell.tcgen05", {}, "float8_e4m3fn", "float8_e5m2"),
    ("tcgen05 FP8", "nvidia.blackwell.tcgen05", {}, "float8_e4m3fn", "float8_e4m3fn"),
    ("tcgen05 MXFP8", "nvidia.blackwell.tcgen05", {}, "mxfp8_e4m3", "mxfp8_e4m3"),
    ("tcgen05 MXFP4", "nvidia.blackwell.tcgen05", {}, "mxfp4_e2m1", "mxfp4_e2m1"),
    ("tcgen05 NVFP4", "nvidia.blackwell.tcgen05", {}, "nvfp4", "nvfp4"),
    ("Hopper, MXFP8 scales outside", "nvidia.hopper.wgmma", {}, "mxfp8_e4m3", "mxfp8_e4m3"),
    ("float32 chain of MXFP8", "ideal.fp32", {}, "mxfp8_e4m3", "mxfp8_e4m3"),
    ("float32 chain of NVFP4", "ideal.fp32", {}, "nvfp4", "nvfp4"),
    ("float32 chain of FP8", "ideal.fp32", {}, "float8_e4m3fn", "float8_e4m3fn"),
    ("MXINT8", "ideal.int", {}, "mxint8", "mxint8"),
    ("Arm FP8", "arm.fdot_fp8", {}, "float8_e4m3fn", "float8_e4m3fn"),
    ("RISC-V FP8", "riscv.zvfqwdota8f", {}, "float8_e4m3fn", "float8_e4m3fn"),
    ("Gaudi 3 FP8", "intel.gaudi3.mme", {}, "float8_e4m3fn", "float8_e4m3fn"),
    ("AMX bf16", "x86.tdpbf16ps", {}, "bfloat16", "bfloat16"),
    ("AMX fp16", "x86.tdpfp16ps", {}, "float16", "float16"),
    ("Hopper wgmma fp16", "nvidia.hopper.wgmma", {}, "float16", "float16"),
    ("Ampere bf16", "nvidia.ampere.mma", {}, "bfloat16", "bfloat16"),
    ("Ampere tf32", "nvidia.ampere.mma", {}, "tfloat32", "tfloat32"),
    ("Volta fp16", "nvidia.volta.mma", {}, "float16", "float16"),
    ("CDNA3 FP8", "amd.cdna3.mfma", {}, "float8_e4m3fnuz", "float8_e4m3fnuz"),
    ("CDNA3 fp16", "amd.cdna3.mfma", {}, "float16", "float16"),
    ("CDNA2 bf16", "amd.cdna2.mfma", {}, "bfloat16", "bfloat16"),
    ("float32 chain", "ideal.fp32", {}, "float32", "float32"),
    ("FP8 to bf16 accumulator", "ideal.mac", {"acc_format": "bfloat16"}, "float8_e4m3fn",
     "float8_e4m3fn"),
    ("fp16 product, fp16 sum", "ideal.mac", {"acc_format": "float16", "fused": False},
     "float16", "float16"),
    ("exact sum of FP8", "ideal.exact", {}, "float8_e4m3fn", "float8_e4m3fn"),
)  # fmt: skip


@dataclass(frozen=True)
class MatmulTiming:
    """The speed of one library at one kind of matrix product.

    Parameters
    ----------
    task
        What is multiplied, on which unit.
    library
        Who multiplies; ``numsim avx2``: without AVX-512; ``numsim x2``: on two threads.
    shape
        M, N, K.
    rate
        Billion multiply-accumulates a second, median of the repetitions; packing of the left
        operand counts, that of the right one (once per weight) does not.
    of_blas
        The rate divided by that of NumPy's float32 product of the large shape, on one thread, timed
        just before: a machine that others use is not equally fast all the time.
    of_bound
        Of a small or odd shape: the rate divided by the unit's own at the large shape; of one row,
        by the rate at which NumPy adds up as many bytes, one a code, as uint64, if that is less:
        such a product cannot avoid reading the weights. NaN for the large shape.
    """

    task: str
    library: str
    shape: Shape
    rate: float
    of_blas: float
    of_bound: float = math.nan


def bench_matmul(
    *, shape: Shape = LARGE, decode: Shape | None = DECODE, odd: Shape | None = ODD,
    repeats: int = 5, narrow: bool = True,
) -> list[MatmulTiming]:  # fmt: skip
    """Time matrix products of all kinds of units, in one run and on one thread.

    Parameters
    ----------
    shape
        M, N, K of the large product.
    decode
        M, N, K of a product with few rows; None: none.
    odd
        M, N, K of a small product, of a network's weight gradient; None: none.
    repeats
        Calls of which the median counts, after one that does not; ten times as many of a product
        that is decode or odd, whose first calls still bring nearer what the others read.
    narrow
        Time the kernels of AVX2 too, where the machine has AVX-512.

    Returns
    -------
    One `MatmulTiming` for each unit, path and shape, and for each peer that is installed.

    Raises
    ------
    NumsimError
        If `repeats` is no positive integer, or NumPy's process ends.

    Examples
    --------
    >>> rows = bench_matmul(shape=(4, 8, 32), decode=None, odd=None, repeats=1, narrow=False)
    >>> rows[0].task, rows[0].library
    ('float32', 'NumPy BLAS')
    """
    check_repeats("bench matmul", repeats)
    paths = [("numsim", simd.path(), 1)]
    if narrow and simd.enabled():
        paths.append((f"numsim {simd.PATHS[-2]}", simd.PATHS[-2], 1))
    if (os.cpu_count() or 1) > 1:
        paths.append(("numsim x2", simd.path(), 2))
    with _blas(shape, repeats) as blas, jit.using_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", UnvalidatedWarning)  # how fast, not how true
        rows = [MatmulTiming("float32", "NumPy BLAS", shape, blas(), 1.0)]
        for task, library, size, timed in _peers(shape):
            beside = blas()
            rate = rate_of(timed, size, repeats)
            rows.append(MatmulTiming(task, library, size, rate, rate / beside))
        for task, unit, changes, left, right in UNITS:
            target, own = get_target(unit, **changes), dict[str, float]()
            for size in (shape, *(s for s in (odd, decode) if s)):
                a = operand(size[0], size[2], left, 0)
                b = operand(size[2], size[1], right, 1, axis=-2)

                def call(a: QTensor = a, b: QTensor = b, target: Any = target) -> object:
                    return matmul(replace(a), b, target=target)  # replace: packed anew

                for library, path, threads in paths:
                    beside, count = blas(), repeats if size == shape else 10 * repeats
                    with simd.force(path), jit.using_threads(threads):
                        rate = rate_of(call, size, count)
                    own.setdefault(library, rate)
                    bound = math.nan if size == shape else own[library]
                    if size == decode:
                        bound = min(bound, _read_rate(size, count))
                    rows.append(
                        MatmulTiming(task, library, size, rate, rate / beside, rate / bound)
                    )
    return rows


def print_matmul(rows: list[MatmulTiming]) -> None:
    """Print timings as a table, peers first; ratios of rates are those of rates over BLAS."""
    cells = [("task", "library", "M x N x K", "GMAC/s", "/ BLAS", "/ bound")]
    large = {(row.task, row.library): row for row in reversed(rows)}
    cells += [
        (
            row.task, row.library, "x".join(map(str, row.shape)), f"{row.rate:,.2f}",
            f"{row.of_blas:.3f}", "" if math.isnan(row.of_bound) else f"{row.of_bound:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    say("matrix products, one core (x2: two), median, right operand packed once")
    say("\n".join(columns(cells, "<<<>>>", gap="  " if width() > 80 else " ")))
    say(
        "/ BLAS: over NumPy's large float32 product, timed again beside each row;\n"
        "/ bound: over the unit's own rate of the large product; of one row, over the\n"
        "smaller of that and what NumPy reads of codes of one byte"
    )
    for (task, peer), row in large.items():
        if (task, "numsim") in large and not peer.startswith("numsim"):
            ratio = large[task, "numsim"].of_blas / row.of_blas
            say(f"{task}: numsim is {ratio:,.2f} x {peer}")


def operand(rows: int, columns: int, name: str, seed: int, *, axis: int = -1) -> QTensor:
    """Return a random matrix in a format, or stored by a rule whose scales run along an axis.

    >>> operand(2, 64, "mxfp8_e4m3", 0)
    QTensor(float8_e4m3fn [2, 64], scale [2, 2])
    """
    rng = np.random.default_rng(seed)
    if name in QUANTS:
        values = rng.standard_normal((rows, columns), np.float32)
        return quantize(values, name, axis=axis)
    fmt = get_format(name)
    if fmt.kind == "integer":
        info = np.iinfo(fmt.code_dtype)
        codes = rng.integers(info.min, info.max, (rows, columns), fmt.code_dtype, endpoint=True)
        return QTensor(codes, fmt)
    values = rng.standard_normal((rows, columns), np.float32)
    return QTensor(encode(values, fmt), fmt)


@contextmanager
def _blas(shape: Shape, repeats: int) -> Iterator[Callable[[], float]]:
    """Yield what times NumPy's product in a process of its own, whose BLAS has one thread."""
    m, n, k = shape
    program = (
        "import numpy as np, sys, time\n"
        f"a = np.ones(({m}, {k}), np.float32); b = np.ones(({k}, {n}), np.float32); a @ b\n"
        "for _ in sys.stdin:\n"
        "    s = []\n"
        f"    for _ in range({repeats}):\n"
        "        t = time.perf_counter(); a @ b; s.append(time.perf_counter() - t)\n"
        "    print(np.median(s), flush=True)"
    )
    one = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "MKL", "OMP", "VECLIB", "BLIS")}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | one, stdin=pipe, stdout=pipe, text=True,
        start_new_session=True,  # Ctrl-C stops this process, which ends the other one's input
    ) as other:  # fmt: skip
        ask, answer = other.stdin, other.stdout
        if ask is None or answer is None:
            raise RuntimeError("a process without the pipes that it was given")

        def rate() -> float:
            ask.write("\n")
            ask.flush()
            seconds = answer.readline()
            if not seconds:
                raise NumsimError("bench matmul: NumPy's process ended; run it again")
            return m * n * k / float(seconds) / 1e9

        try:
            yield rate
        finally:
            other.kill()  # it may still be multiplying, and would write to a closed pipe


def _peers(shape: Shape) -> Iterator[tuple[str, str, Shape, Callable[[], object]]]:
    torch, mmaemu = installed("torch"), installed("mmaemu")
    if torch is None:
        return
    torch.set_num_threads(1)
    m, n, k = shape
    if m > 16:  # _int_mm takes more than 16 rows
        a, b = (torch.from_numpy(operand(*s, "int8", 0).codes) for s in ((m, k), (k, n)))
        yield "int8 -> int32", "torch _int_mm", shape, lambda: torch._int_mm(a, b)
    if mmaemu is not None:
        small = min(m, 64), min(n, 64), min(k, 1024)
        fp8: list[NDArray[Any]] = [
            operand(rows, small[2], "float8_e4m3fn", i).codes for i, rows in enumerate(small[:2])
        ]
        x, y = (torch.from_numpy(codes).view(torch.float8_e4m3fn) for codes in fp8)
        for task, profile in (("Hopper wgmma FP8", "hopper"), ("Ada FP8", "ada")):

            def call(profile: str = profile) -> object:
                return mmaemu.accumulate(x, y, use_fast_accum=True, profile=profile, splitk=1)

            yield task, "mmaemu", small, call


def _read_rate(shape: Shape, repeats: int) -> float:
    """Return how many billion codes of one byte a second NumPy adds up, read as uint64."""
    words = np.ones(shape[1] * shape[2] // 8, np.uint64)
    return rate_of(words.sum, (1, shape[1], shape[2]), repeats)


def rate_of(call: Callable[[], object], shape: Shape, repeats: int) -> float:
    """Return billion multiply-accumulates a second: the median of calls, after one."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.prod(shape)) / float(np.median(seconds)) / 1e9
