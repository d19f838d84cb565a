"""A probe of a machine in another building: stimuli as files, answers as files, round by round."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.files import check_regular, replace_files
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.probe.found import Probe
from numsim.probe.machine import WORDS, Answers, Batch, Doubt, Machine, bits_of, merged
from numsim.probe.probe import machine_for
from numsim.probe.search import Search
from numsim.probe.talk import check_answers, conversation, stopped

_HEAD = "probe.json"
_KINDS = (".npz", ".hex", ".csv")


@dataclass(frozen=True)
class Asked:
    """What a folder waits for: the round whose answers are missing, and its stimulus files."""

    round: int
    files: tuple[str, ...]


@known_floats
def emit(
    folder: str | Path,
    *,
    formats: FormatLike | tuple[FormatLike, FormatLike],
    out_format: FormatLike | None = None,
    c: bool = True,
    depths: tuple[int, ...] = (64, 512),
    blocks: str | None = None,
) -> Asked:
    """Write the first round of stimuli for a machine that cannot be called.

    Each ``NAME`` of ``round1`` is a table of dot products: ``NAME.npz`` (a, b [S, K] codes, c [S]
    words), the same as ``NAME_a.hex``, ``NAME_b.hex``, ``NAME_c.hex`` for ``$readmemh``, and
    ``NAME.csv``; with block scales also their codes sa, sb [S, K / block]. Every dot product comes
    twice, the second time in opposite order. The machine's results, one word each in that order, go
    beside them as ``NAME.d.npz`` (array d), ``NAME.d.hex`` or ``NAME.d.csv``.

    Parameters
    ----------
    folder
        Folder to write to; made if it does not exist.
    formats, out_format, c, depths, blocks
        As for `probe`.

    Raises
    ------
    NumsimError
        As `probe`, and for a folder that holds another probe or cannot be written.

    Source
    ------
    IEEE 1800-2017 section 21.4, ``$readmemh``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     emit(name, formats="int8", depths=(16,)).files
    ('start', 'exact', 'steps', 'edges', 'random')
    """
    machine = machine_for(formats, out_format, c, depths, blocks)
    place = Path(folder)
    head = _head(machine)
    written = place / _HEAD
    if written.exists() and _read_head(place) != json.loads(head):
        raise NumsimError(f"probe: {place} holds stimuli for another machine; name another folder")
    batches = next(conversation(Search(machine)))
    _write(place, 1, machine, batches, {written: head.encode()})
    return Asked(1, tuple(batch.name for batch in batches))


@known_floats
def read_answers(folder: str | Path) -> Probe | Asked:
    """Read what a machine answered to the stimuli in a folder.

    Returns
    -------
    `Probe` where all is known; `Asked` where a next round of stimuli was written.

    Raises
    ------
    NumsimError
        For a folder without stimuli, answers to unknown stimuli, and missing rounds.
    ProbeError
        For too few answers, answers that change, or are all NaN; what was learned until then is its
        `probe`.

    Source
    ------
    As `probe`.

    Examples
    --------
    >>> read_answers("missing")
    Traceback (most recent call last):
    numsim.errors.NumsimError: probe: missing holds no stimuli ...; write them with --emit
    """
    place = Path(folder)
    head = _read_head(place)
    machine = machine_for(
        tuple(head["formats"]), head["out_format"], head["c"], tuple(head["depths"]),
        head.get("blocks"),
    )  # fmt: skip
    search, number = Search(machine), 1
    talk = conversation(search)
    batches = next(talk)
    while True:
        where = place / f"round{number}"
        known = [batch.name for batch in batches]
        _check_names(where, known)
        missing = tuple(name for name in known if _answer_file(where, name) is None)
        if len(missing) == len(known):
            _write(place, number, machine, batches, {})
            return Asked(number, missing)
        found: list[Answers] = []
        try:
            for batch in batches:
                d = _answers(where, batch, machine)
                check_answers(batch, d)
                found.append(d)
        except Doubt as doubt:
            raise stopped(str(doubt), search, batches, found, 0) from None
        try:
            batches = talk.send(found)
        except StopIteration as end:
            result: Probe = end.value
            return result
        number += 1


def _head(machine: Machine) -> str:
    names = [f.name for f in (machine.a, machine.b)]
    table = {
        "formats": names, "out_format": machine.out, "c": machine.has_c,
        "depths": list(machine.depths), "blocks": machine.blocks or None,
    }  # fmt: skip
    return json.dumps(table, indent=1) + "\n"


def _read_head(place: Path) -> Any:
    check_regular(place / _HEAD, "probe")
    try:
        return json.loads((place / _HEAD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NumsimError(
            f"probe: {place} holds no stimuli ({_HEAD}: {error}); write them with --emit"
        ) from None


def _twice(count: int) -> NDArray[np.int64]:
    order = np.arange(count)
    return np.concatenate([order, order[::-1]])


def _write(
    place: Path, number: int, machine: Machine, batches: list[Batch], files: dict[Path, bytes]
) -> None:
    where = place / f"round{number}"
    try:
        where.mkdir(parents=True, exist_ok=True)
        for batch in batches:
            files |= dict(_files(where, machine, batch.rows(_twice(len(batch.a)))))
        replace_files(files)
    except OSError as error:
        raise NumsimError(
            f"probe: cannot write {place}: {error}; give a folder that can be written"
        ) from None


def _files(where: Path, machine: Machine, batch: Batch) -> Iterator[tuple[Path, bytes]]:
    scale = 0 if machine.scale is None else machine.scale.bits
    bits = {"a": machine.a.bits, "b": machine.b.bits, "sa": scale, "sb": scale}
    words = {
        name: (array.view(f"u{array.itemsize}"), bits.get(name, 8 * array.itemsize))
        for name, array in batch.arrays().items()
    }
    packed = io.BytesIO()
    arrays: dict[str, Any] = {name: array for name, (array, _) in words.items()}
    np.savez_compressed(packed, **arrays)
    yield where / f"{batch.name}.npz", packed.getvalue()
    for name, (array, width) in words.items():
        shape = " x ".join(map(str, array.shape))
        mask, digits = (1 << width) - 1, -(-width // 4)
        lines = [f"{word & mask:0{digits}x}" for word in array.ravel().tolist()]
        head = f"// {name}: {width} bits, shape {shape}, row-major\n"
        yield where / f"{batch.name}_{name}.hex", (head + "\n".join(lines) + "\n").encode()
    tables = [name for name in words if name != "c"]
    names = [f"{x}{k}" for x in tables for k in range(words[x][0].shape[1])]
    rows = [",".join(["row", "c", *names])]
    for n, c in enumerate(words["c"][0].tolist()):
        cells = (word for x in tables for word in words[x][0][n].tolist())
        rows.append(",".join([str(n), hex(c), *map(hex, cells)]))
    yield where / f"{batch.name}.csv", ("\n".join(rows) + "\n").encode()


def _check_names(where: Path, known: list[str]) -> None:
    for file in sorted(where.glob("*.d.*")) if where.is_dir() else ():
        name = file.name.partition(".d.")[0]
        if name not in known:
            raise NumsimError(
                f"probe: {file} answers stimuli that were not asked; this round has "
                f"{', '.join(known)}; name the file after one of them"
            )


def _answer_file(where: Path, name: str) -> Path | None:
    return next((f for kind in _KINDS if (f := where / f"{name}.d{kind}").exists()), None)


def _answers(where: Path, batch: Batch, machine: Machine) -> Answers:
    file = _answer_file(where, batch.name)
    if file is None:
        raise Doubt(
            f"probe: stimulus {batch.name}: every table of a round has its answers; there is no "
            f"{batch.name}.d.npz, .hex or .csv in {where}"
        )
    words = _read_words(file)
    order = _twice(len(batch.a))
    if len(words) != len(order):
        raise Doubt(
            f"probe: stimulus {batch.name} {len(words) % len(batch.a)}: {file} has one word for "
            f"each of {len(order)} dot products; got {len(words)}"
        )
    limit = 1 << (8 * machine.dtype.itemsize)
    wrong = next((n for n, word in enumerate(words) if not -limit // 2 <= word < limit), None)
    if wrong is not None:
        raise Doubt(
            f"probe: stimulus {batch.name} {int(order[wrong])}: {file} holds words of "
            f"{8 * machine.dtype.itemsize} bits; got {words[wrong]:#x}"
        )
    typed = np.array([word % limit for word in words], WORDS[machine.dtype.itemsize])
    return merged(batch, [(order, typed.view(machine.dtype))])


def _read_words(file: Path) -> list[int]:
    check_regular(file, "probe")
    try:
        if file.suffix == ".npz":
            with np.load(file) as npz:
                array = npz["d"].ravel()
            array = array if array.dtype.kind in "iu" else bits_of(array)
            return [int(word) for word in array]
        lines = file.read_text(encoding="utf-8").splitlines()
        cells = [line.partition("//")[0].strip() for line in lines]
        cells = [cell.rpartition(",")[2].strip() for cell in cells if cell]
        base = 16 if file.suffix == ".hex" else 0
        return [int(cell, base) for cell in cells if cell != "d"]  # a CSV file's head
    except (OSError, ValueError, LookupError) as error:
        raise Doubt(
            f"probe: stimulus {file.name.partition('.d.')[0]} 0: {file} holds one word a line, or "
            f"an array d: {error}"
        ) from None


__all__ = ["Asked", "emit", "read_answers"]
