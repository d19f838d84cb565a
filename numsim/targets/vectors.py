"""RTL hand-off: operands, expected results and accumulator traces as hex files and one npz."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.convert import encode
from numsim.errors import NumsimError
from numsim.files import check_regular, replace_files
from numsim.float_state import known_floats
from numsim.formats import Format, get_format
from numsim.quant import QTensor
from numsim.quant.words import block_axis, block_words
from numsim.targets.rules import adds_integers
from numsim.targets.trace import Trace, trace
from numsim.targets.types import Target


@known_floats
def export_vectors(
    path: str | Path,
    a: QTensor,
    b: QTensor,
    *,
    target: str | Target,
    c: ArrayLike | None = None,
    out_format: str | Format | None = None,
) -> tuple[Path, ...]:
    """Write golden vectors of one matrix product for a hardware test bench.

    Every ``NAME.hex`` is for ``$readmemh``: one word a line, row-major, as many hex digits as the
    width needs, two's complement for integers, and a first comment line with format, width and
    shape. ``vectors.npz`` holds the same words in the smallest unsigned integers that have the
    width, and ``meta``, a JSON text with the format, width and shape of each array, the steps, and
    the unit as TOML.

    ==================== ==========================================================================
    file                 words
    ==================== ==========================================================================
    ``a``, ``b``         codes [..., M, K] and [..., K, N]; of IF4 and HiF4 `numsim.quant.words`
    ``scale_a/b``        scales where there are any: codes of their format, else float32
    ``tensor_scale_a/b`` float32 scale of the whole tensor on top (NVFP4), where there is one
    ``zero_point_a/b``   zero points where there are any, 32 bits; a unit of floats takes codes less
                         these
    ``levels_a/b``       levels 2 (the low 8 bits) and 3 of the blocks of HiF4
    ``c``                accumulator input [..., M, N], where one is given
    ``accumulator``      [steps, batch, M, N]: after every step of every chain, in order
    ``sums``             [sums, batch, M, N]: the outer accumulator after every addition of
                         promoted or split parts, where there are any
    ``corrected``        [blocks of K, batch, M, N]: integer sums less zero points, where there are
                         any
    ``d``                what `numsim.matmul` returns [..., M, N]
    ==================== ==========================================================================

    Parameters
    ----------
    path
        Folder to write to; made if it does not exist.
    a, b, target, c, out_format
        As for `numsim.matmul`.

    Returns
    -------
    The files written.

    Raises
    ------
    NumsimError
        As `numsim.matmul`, and for a folder that cannot be written. Nothing is written then.

    Source
    ------
    IEEE 1800-2017 section 21.4, ``$readmemh``.

    Examples
    --------
    >>> import tempfile
    >>> a = QTensor.from_codes([[1, -2]], "int8")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = export_vectors(folder, a, a.T, target="ideal.int")
    ...     print([f.name for f in files])
    ...     print(files[0].read_text())
    ['a.hex', 'b.hex', 'accumulator.hex', 'd.hex', 'vectors.npz']
    // a: int8, 8 bits, shape 1 x 2, row-major
    01
    fe
    """
    if not isinstance(path, str | Path):
        raise NumsimError(f"export_vectors: path is a folder; got {path!r}")
    found = trace(a, b, target, c, out_format)
    folder = Path(path)
    arrays = {name: item for name, item in _arrays(a, b, c, found).items() if item is not None}
    meta = {
        "arrays": {
            name: {"format": fmt, "bits": bits, "shape": list(words.shape)}
            for name, (fmt, bits, words) in arrays.items()
        },
        "steps": [
            {"chain": i, "k": step.positions.tolist()}
            for i, chain in enumerate(found.chains)
            for step in chain
        ],
        "target": found.target.to_toml(),
    }
    files: dict[Path, bytes] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (fmt, bits, words) in arrays.items():
            file = folder / f"{name}.hex"
            check_regular(file, "export_vectors")
            shape = " x ".join(map(str, words.shape))
            head = f"// {name}: {fmt}, {bits} bits, shape {shape}, row-major\n"
            digits = -(-bits // 4)
            lines = "\n".join(f"{word:0{digits}x}" for word in words.ravel().tolist())
            files[file] = f"{head}{lines}\n".encode("ascii")
        words_only: dict[str, Any] = {
            name: words.astype(f"u{next(n for n in (1, 2, 4, 8) if bits <= 8 * n)}")
            for name, (_, bits, words) in arrays.items()
        }
        file = folder / "vectors.npz"
        check_regular(file, "export_vectors")
        packed = io.BytesIO()
        np.savez_compressed(packed, meta=np.array(json.dumps(meta)), **words_only)
        replace_files(files | {file: packed.getvalue()})
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise NumsimError(
            f"export_vectors: cannot write {folder}: {error}; give a folder that can be written"
        ) from None
    return (*files, file)


_Words = tuple[str, int, NDArray[np.unsignedinteger[Any]]]


def _arrays(a: QTensor, b: QTensor, c: ArrayLike | None, found: Trace) -> dict[str, _Words | None]:
    rule, integers = found.rule, adds_integers(found.rule)
    width = found.bits if integers else 0
    outer = rule.outer_bits if adds_integers(rule) else 32
    steps = np.stack([step.after for chain in found.chains for step in chain])
    accumulator = (
        _integer_words(steps, width) if integers else _float_words(steps, found.accumulator)
    )
    operands: dict[str, _Words | None] = {}
    for name, q in (("a", a), ("b", b)):
        codes, levels = _code_words(q)
        operands |= {
            name: codes, f"scale_{name}": _scale_words(q), f"tensor_scale_{name}": _tensor_scale(q),
            f"zero_point_{name}": None if q.zero_point is None
            else _integer_words(np.atleast_1d(q.zero_point).astype(np.int64), 32),
            f"levels_{name}": levels,
        }  # fmt: skip
    return operands | {
        "c": None if c is None else _result_words(np.asarray(c), width),
        "accumulator": accumulator,
        "sums": _result_words(np.stack(found.sums), outer) if found.sums else None,
        "corrected": _result_words(np.stack(found.corrected), 0) if found.corrected else None,
        "d": _result_words(found.d, 0),
    }  # fmt: skip


def _code_words(q: QTensor) -> tuple[_Words, _Words | None]:
    if q.quant is not None and q.quant.scale_rule in ("if4", "hif4"):
        return _block_words(q)
    return _plain_codes(q), None


def _block_words(q: QTensor) -> tuple[_Words, _Words | None]:
    """Words of IF4 and HiF4: elements, and the levels of the latter."""
    found, (axis, _) = block_words(q), block_axis(q)
    assert q.quant is not None
    elements = np.ascontiguousarray(np.moveaxis(found.elements, -1, axis))
    words = str(q.quant.scale_rule), 4, elements
    if found.level_2 is None or found.level_3 is None:
        return words, None
    levels = found.level_2.astype(np.uint32) | (found.level_3.astype(np.uint32) << 8)
    return words, ("levels", 24, np.ascontiguousarray(np.moveaxis(levels, -1, axis)))


def _plain_codes(q: QTensor) -> _Words:
    if q.fmt.kind == "integer":
        return (q.fmt.label, *_integer_words(q.codes.astype(np.int64), q.fmt.bits)[1:])
    return q.fmt.label, q.fmt.bits, np.ascontiguousarray(q.codes)


def _scale_words(q: QTensor) -> _Words | None:
    if q.scale_codes is not None and q.scale_format is not None:
        return q.scale_format.label, q.scale_format.bits, np.ascontiguousarray(q.scale_codes)
    if q.scale is None:
        return None
    return "float32", 32, np.ascontiguousarray(q.scale, np.float32).view(np.uint32)


def _tensor_scale(q: QTensor) -> _Words | None:
    if q.tensor_scale is None:
        return None
    return "float32", 32, np.ravel(np.asarray(q.tensor_scale, np.float32)).view(np.uint32)


def _integer_words(values: NDArray[np.int64], bits: int) -> _Words:
    mask = (1 << bits) - 1
    return f"int{bits}", bits, values.astype(np.int64).view(np.uint64) & np.uint64(mask)


def _result_words(values: NDArray[Any], bits: int) -> _Words:
    """Words of a result in its NumPy type; integers in `bits` bits (0: those of the type)."""
    if values.dtype.kind in "iu":
        return _integer_words(values.astype(np.int64), bits or 8 * values.itemsize)
    words = np.ascontiguousarray(values).view(f"u{values.itemsize}")
    return str(values.dtype), 8 * values.itemsize, words


def _float_words(values: NDArray[Any], name: str | Format) -> _Words:
    """Words of accumulators, which arrive in a type that holds their format."""
    fmt = get_format(name)
    if name in (str(values.dtype), "float32"):
        return _result_words(values, 0)
    return fmt.label, fmt.bits, encode(values, fmt, overflow="special")
