"""A format's values as a figure."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from numsim.decimals import short_text
from numsim.errors import NumsimError
from numsim.files import replace_files
from numsim.float_state import known_floats
from numsim.formats import Format, get_format

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@known_floats
def draw_number_line(fmt: str | Format, path: str | Path) -> Path:
    """Draw every finite value of a format of at most 16 bits: linear, and magnitudes by exponent.

    Parameters
    ----------
    fmt
        Format or its name.
    path
        File to write; its ending names the type (``.png``, ``.svg``, ``.pdf``).

    Returns
    -------
    The path written.

    Raises
    ------
    NumsimError
        For a wider format, or an ending that is not an image type.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> draw_number_line("float4_e2m1fn", f"{folder}/fp4.png").name
    'fp4.png'
    """
    f = get_format(fmt)
    if not isinstance(path, str | Path):
        raise NumsimError(f"number line: path is a str or Path; got {type(path).__name__}")
    path = Path(path)
    if f.bits > 16:
        raise NumsimError(f"number line: formats of at most 16 bits; {f.name} has {f.bits}")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise NumsimError(f"number line: the file ends in .png, .svg or .pdf; got {path.name!r}")
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for its reader
            raise NumsimError(f"number line: {str(path)!r} is no file; give a name that is free")
        drawn = io.BytesIO()
        number_line(f).savefig(drawn, format=path.suffix[1:].lower(), dpi=150)
        replace_files({path: drawn.getvalue()})
    except (OSError, ValueError) as error:
        if isinstance(error, NumsimError):
            raise
        why = getattr(error, "strerror", None) or error  # a null character in the name
        raise NumsimError(f"number line: cannot write {str(path)!r}: {why}") from None
    return path


@known_floats
def number_line(f: Format) -> Figure:
    """Return the figure: ticks at both ends and at powers of two, subnormal numbers shaded."""
    from matplotlib.figure import Figure

    values = f.values()
    values = np.unique(values[np.isfinite(values)])
    positive = values[values > 0]
    figure = Figure(figsize=(9, 3), layout="constrained")
    line, scale = figure.subplots(2, 1)
    height = 0.8 if values.size <= 64 else 0.5
    line.vlines(values, 0, height, lw=0.8, color="#1f5fa8")
    line.set_title(
        f"{f.name}: {values.size} finite values, {short_text(f.min)} to {short_text(f.max)}",
        fontsize=10,
        parse_math=False,
    )
    line.set_xticks(_ticks(line.get_xticks(), f.min, f.max))
    scale.vlines(positive, 0, height, lw=0.8, color="#b4471f")
    scale.set_xscale("log", base=2)
    low, high = (math.frexp(positive[end])[1] - 1 for end in (0, -1))
    step = -(-(high - low + 1) // 12)  # at most twelve labels
    first = low if positive[0] == math.ldexp(1, low) else low + 1
    border = f.has_subnormals and positive[0] < math.ldexp(1, f.emin) <= f.max
    labelled = first + (f.emin - first) % step if border else first  # the border has a label
    scale.set_xticks([math.ldexp(1, e) for e in range(labelled, high + 1, step)])
    scale.set_xticks([math.ldexp(1, e) for e in range(first, high + 1)], minor=True)
    scale.tick_params(which="minor", labelbottom=False)
    every = "power of two" if step == 1 else f"{step} powers of two"
    label = f"positive values, a label every {every}"
    if border:
        label += f"; shaded: subnormal, below 2^{f.emin}"
        left = f.min_normal if f.signed else 0.0
        for axis, start in ((line, -left), (scale, positive[0] / 2**0.25)):
            axis.axvspan(start, f.min_normal, color="#dddddd", lw=0, zorder=0)
        scale.axvline(f.min_normal, 0, 0.95, lw=1, ls="--", color="#555555")
    scale.set_xlabel(label, fontsize=8)
    for axis in (line, scale):
        axis.set_ylim(0, 1)
        axis.set_yticks([])
        axis.tick_params(labelsize=8)
        for side in ("left", "right", "top"):
            axis.spines[side].set_visible(False)
    return figure


def _ticks(usual: ArrayLike, low: float, high: float) -> list[float]:
    """Return both ends and the usual ticks that stand apart from them."""
    room = 0.06 * (high - low)
    inner = [t for t in np.asarray(usual, np.float64).tolist() if low + room < t < high - room]
    return [low, *inner, high]
