"""Find out how a black box multiplies and adds: `probe`."""

from __future__ import annotations

from dataclasses import replace

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, format_name, get_format
from numsim.probe.found import Probe, ProbeError, Witness
from numsim.probe.machine import DTYPES, Answers, Doubt, Machine, Run, ask
from numsim.probe.search import Search
from numsim.probe.talk import check_answers, conversation, stopped


@known_floats
def probe(
    run: Run,
    *,
    formats: FormatLike | tuple[FormatLike, FormatLike],
    out_format: FormatLike | None = None,
    c: bool = True,
    depths: tuple[int, ...] = (64, 512),
    rows: int = 32,
    blocks: str | None = None,
) -> Probe:
    """Find the rule by which a machine multiplies and adds.

    Parameters
    ----------
    run
        The machine: ``run(a, b, c) -> d`` for codes a [rows, K], b [K, rows], c [rows, rows] in the
        NumPy type of the result (None where `c` is False) and d like c. A library, a device, a
        simulation.
    formats
        Format of the operands, or of a and of b.
    out_format
        ``float32``, ``float16`` or ``bfloat16``; integers: ``int32``. None: float32, or int32 for
        integers.
    c
        Whether the machine adds to an accumulator input.
    depths
        K of the stimuli: most, and the long ones that show how long sums are cut. One K alone for
        a machine that takes no other; what only longer sums show stays open then.
    rows
        M and N of every call. Each dot product is asked twice, at two places.
    blocks
        Block scales of both operands that the machine applies itself, as format/length
        (``float8_e8m0fnu/32``): it is called as ``run(a, b, c, scale_a, scale_b)`` with their codes
        [rows, K / length] and [K / length, rows].

    Returns
    -------
    `Probe`: the unit, the stimuli that decided each field, and what none could decide.

    Raises
    ------
    NumsimError
        For formats or depths that cannot be.
    ProbeError
        For answers of the wrong shape or type, that change, or are all NaN; what was learned until
        then is its `probe`.

    Source
    ------
    Fasi, Higham, Mikaitis and Pranesh, Numerical behavior of NVIDIA tensor cores, PeerJ 2021; Xie
    et al., FPRev, arXiv 2411.00442 (large numbers that cancel show the order of a sum).

    Examples
    --------
    >>> import numpy as np
    >>> def machine(a, b, c):  # wraps in 20 bits
    ...     return (c + a.astype(np.int32) @ b.astype(np.int32)) << 12 >> 12
    >>> found = probe(machine, formats="int8", depths=(16,), rows=16)
    >>> found.target.rules[0][1].acc_bits, found.target.rules[0][1].overflow
    (20, 'wrap')
    """
    machine = machine_for(formats, out_format, c, depths, blocks)
    if not callable(run) or rows < 1:
        raise NumsimError(
            f"probe: run is a function of (a, b, c) and rows at least 1; got {run!r:.60}, {rows}"
        )
    search = Search(machine)
    talk, calls = conversation(search), 0
    batches = next(talk)
    while True:
        found: list[Answers] = []
        try:
            for batch in batches:
                d, some = ask(run, machine, batch, rows)
                calls += some
                check_answers(batch, d)
                found.append(d)
        except Doubt as doubt:
            raise stopped(str(doubt), search, batches, found, calls) from None
        try:
            batches = talk.send(found)
        except StopIteration as end:
            result: Probe = end.value
            return replace(result, calls=calls)


def machine_for(
    formats: FormatLike | tuple[FormatLike, FormatLike], out_format: FormatLike | None, c: bool,
    depths: tuple[int, ...], blocks: str | None = None,
) -> Machine:  # fmt: skip
    """Return what is known of a machine before it is asked.

    Raises
    ------
    NumsimError
        For formats or depths that cannot be.
    """
    both = formats if isinstance(formats, tuple) else (formats, formats)
    if len(both) != 2:
        raise NumsimError(f"probe: formats is one format, or two, of a and b; got {formats!r:.80}")
    a, b = (get_format(f) for f in both)
    integer = a.kind == b.kind == "integer" and blocks is None
    out = format_name(out_format, "probe: out_format") if out_format else ""
    out = out or ("int32" if integer else "float32")
    if out not in DTYPES or (out == "int32") != integer:
        raise NumsimError(
            "probe: out_format is float32, float16 or bfloat16, for two integer formats "
            "int32; got "
            f"{out} for {a.label} and {b.label}"
        )
    whole = all(isinstance(k, int) and not isinstance(k, bool) for k in depths)
    if (
        not depths
        or len(depths) > 2
        or not whole
        or min(depths) < 4
        or list(depths) != sorted(depths)
    ):
        raise NumsimError(
            f"probe: depths is one K or two, ascending, of at least 4; got {depths!r:.60}"
        )
    _check_format(a)
    _check_format(b)
    scale, block = (None, 0) if blocks is None else _block_scales(blocks, depths)
    if scale is not None and out != "float32":
        raise NumsimError(f"probe: sums with block scales are float32; got out_format {out}")
    return Machine(a, b, out, bool(c), tuple(depths), scale, block)


def _block_scales(blocks: str, depths: tuple[int, ...]) -> tuple[Format, int]:
    name, _, length = blocks.partition("/") if isinstance(blocks, str) else ("", "", "")
    size = int(length) if length.isdigit() else 0
    if not name or size < 16:
        raise NumsimError(
            "probe: blocks is a format of scales and a length of at least 16, as in "
            f"float8_e8m0fnu/32; got {blocks!r:.60}"
        )
    if any(k % size for k in depths) or depths[0] < 2 * size:
        raise NumsimError(
            f"probe: depths are multiples of the blocks' {size}, two of them at least; got {depths}"
        )
    return get_format(name), size


def _check_format(fmt: Format) -> None:
    if fmt.kind not in ("float", "integer") or not fmt.zero:
        raise NumsimError(
            f"probe: stimuli are made of powers of two and zero; {fmt.label} is another kind of "
            "format; probe the machine with one of its float, fixed-point or integer formats"
        )


__all__ = ["Probe", "ProbeError", "Witness", "machine_for", "probe"]
