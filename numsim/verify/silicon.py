"""Recorded hardware, independent models and published rules, replayed through `numsim.matmul`."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.quant import QTensor
from numsim.targets import Target, epilogue, get_target, matmul

_FORMATS = {
    "e4m3": "float8_e4m3fn", "E4M3": "float8_e4m3fn", "e5m2": "float8_e5m2", "E5M2": "float8_e5m2",
    "e4m3fnuz": "float8_e4m3fnuz", "e5m2fnuz": "float8_e5m2fnuz", "e2m1": "float4_e2m1fn",
    "fp16": "float16", "f16": "float16", "bf16": "bfloat16", "tf32": "tfloat32",
    "xf32": "tfloat32", "f32": "float32", "ue8m0": "float8_e8m0fnu", "ue4m3": "float8_e4m3fn",
    "e3m2": "float6_e3m2fn", "e2m3": "float6_e2m3fn", "e4m3ieee": "float8_e4m3", "q1.6": "q1.6",
    "u8": "uint8", "s8": "int8",
}  # fmt: skip
_UNITS = {
    ("Volta", "mma"): "nvidia.volta.mma", ("Turing", "mma"): "nvidia.turing.mma",
    ("Ampere", "mma"): "nvidia.ampere.mma", ("Ada Lovelace", "mma"): "nvidia.ada.mma",
    ("Hopper", "mma"): "nvidia.hopper.mma", ("Hopper", "wgmma"): "nvidia.hopper.wgmma",
    ("Blackwell", "tcgen05mma"): "nvidia.blackwell.tcgen05",
    ("RTX Blackwell", "mma"): "nvidia.rtx_blackwell.mma", ("CDNA1", "mfma"): "amd.cdna1.mfma",
    ("CDNA2", "mfma"): "amd.cdna2.mfma", ("CDNA3", "mfma"): "amd.cdna3.mfma",
}  # fmt: skip
_CHIPS = {
    "V100": "volta", "A2": "ampere", "A100": "ampere", "Ada": "ada", "L40S": "ada",
    "H100": "hopper", "H200": "hopper", "B200": "blackwell",
}  # fmt: skip
_CPU_UNITS = {
    "vpdpbusd": "x86.vpdpbusd", "vpdpbusds": "x86.vpdpbusds", "maddubs": "x86.vpmaddubsw",
    "vpdpwssd": "x86.vpdpwssd", "vpdpwssds": "x86.vpdpwssds",
}  # fmt: skip
_PRESETS = {"ada": "nvidia.ada.mma", "hopper": "nvidia.hopper.wgmma"}
# what a damaged or foreign file leads to
_BROKEN = (
    OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
    MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_ROWS = 40  # recorded rows are separate dot products: the diagonal of blocks of so many


Evidence = Literal["recorded", "modelled", "documented"]
EVIDENCE: dict[Evidence, str] = {
    "recorded": "outputs of the chip itself",
    "modelled": "outputs of an independent model, which others compared with the chip",
    "documented": "outputs of a published rule, computed without numsim; no chip was at hand",
}
_DOCUMENTED = ("rvbna", "gaudi", "arm_fp8", "x86_")


@dataclass
class SiliconRow:
    """One file and one unit.

    Parameters
    ----------
    file
        Name of the file without ``.npz``.
    unit
        The target, and what of it was replayed.
    rows
        Results compared, each bit for bit (NaN of AMD and x86 units: whether it is NaN).
    equal
        How many are equal.
    masked
        Further results that are not compared: another version of the model differs there, or the
        published rule leaves them open.
    first
        The first difference, or why the unit did not run, in words; empty if there is none.
    """

    file: str
    unit: str
    rows: int = 0
    equal: int = 0
    masked: int = 0
    first: str = ""

    @property
    def evidence(self) -> Evidence:
        """What made the outputs; see `EVIDENCE`."""
        if self.file.startswith(("hw_", "cpu_")):
            return "recorded"
        return "documented" if self.file.startswith(_DOCUMENTED) else "modelled"

    @property
    def ok(self) -> bool:
        """Whether every compared result is equal."""
        return self.rows == self.equal and not self.first


@dataclass
class _Table:
    file: str
    rows: dict[str, SiliconRow] = field(default_factory=dict)

    def score(
        self, unit: str, got: NDArray[Any], want: NDArray[Any], *,
        agree: NDArray[np.bool_] | None = None, nan_bits: bool = True,
    ) -> None:  # fmt: skip
        """Compare raw bits where `agree`; None: everywhere."""
        row = self.rows.setdefault(unit, SiliconRow(self.file, unit))
        bits = np.ascontiguousarray(got).view(want.dtype)
        same = bits == want
        if not nan_bits and got.dtype.kind == "f":
            same |= np.isnan(got) & np.isnan(want.view(got.dtype))
        scored = np.ones(want.shape, bool) if agree is None else agree
        row.rows += int(scored.sum())
        row.equal += int((same & scored).sum())
        row.masked += int((~scored).sum())
        if not row.first and not same[scored].all():
            at = tuple(int(i[0]) for i in np.nonzero(~same & scored))
            row.first = f"at {at}: got {int(bits[at]):#x}, expected {int(want[at]):#x}"


def golden_folder(named: str | None = None) -> Path:
    """Return the folder of recordings, which are no part of numsim.

    Parameters
    ----------
    named
        The folder; None: ``NUMSIM_GOLDEN``, else ``../shared/golden`` beside a checkout.

    Raises
    ------
    NumsimError
        Where there is no such folder, or no file in it.

    Examples
    --------
    >>> golden_folder("missing")
    Traceback (most recent call last):
    numsim.errors.NumsimError: verify silicon: recordings of chips and models are not shipped ...
    """
    named = named or os.environ.get("NUMSIM_GOLDEN")
    folder = Path(named) if named else Path(__file__).parents[3] / "shared" / "golden"
    try:
        found = folder.is_dir() and any(folder.glob("*.npz"))
    except (OSError, ValueError):  # a name that is too long, or has a NUL
        found = False
    if not found:
        where = f", and {named} has none" if named else ""
        raise NumsimError(
            f"verify silicon: recordings of chips and models are not shipped with numsim{where}; "
            "set NUMSIM_GOLDEN to a folder that has them (hw_*.npz, cpu_*.npz, mmasim_*.npz, "
            "mmaemu_*.npz); numsim verify conversions needs none"
        )
    return folder


def check_silicon(folder: Path | None = None, *, only: str = "") -> Iterator[SiliconRow]:
    """Replay every recording; one row for each file and unit.

    Parameters
    ----------
    folder
        Folder of the files; None: `golden_folder`.
    only
        Beginning of the names of the files to replay.

    Raises
    ------
    NumsimError
        Where there is no such folder, no such file in it, or one that is damaged.

    Source
    ------
    MATLAB-tensor-core (hw_*), own recordings (cpu_*), MMA-Sim (mmasim_*), mmaemu (mmaemu_*); the
    other files name the text of their rules.

    Examples
    --------
    >>> list(check_silicon(Path("numsim"), only="hw_V100"))
    Traceback (most recent call last):
    numsim.errors.NumsimError: verify silicon: no recording in numsim begins with 'hw_V100'; ...
    """
    where = golden_folder() if folder is None else folder
    kinds: dict[str, Callable[[_Table, dict[str, Any], Any], None]] = {
        "hw_": _hardware, "cpu_int8": _cpu_int8, "cpu_bf16": _cpu_bf16, "mmasim_": _mmasim,
        "mmaemu_": _mmaemu, **dict.fromkeys(_DOCUMENTED, _documented),
    }  # fmt: skip
    found = False
    for file in sorted(where.glob("*.npz")):
        replay = next((r for prefix, r in kinds.items() if file.stem.startswith(prefix)), None)
        if replay is None or not file.stem.startswith(only):
            continue
        found = True
        table = _Table(file.stem)
        try:
            if not file.is_file():  # a pipe would wait for its writer
                raise OSError("not a file")
            with file.open("rb") as raw, np.load(raw) as npz:
                data = {name: npz[name] for name in npz.files}
            meta = json.loads(str(data["meta"]))
            replay(table, data, meta)
        except NumsimError:
            raise
        except _BROKEN as error:
            raise NumsimError(
                f"verify silicon: {file.name} is no recording ({type(error).__name__}: {error}); "
                "fetch it again, or take it out of the folder"
            ) from None
        yield from table.rows.values()
    if not found:
        raise NumsimError(
            f"verify silicon: no recording in {where} begins with {only!r}; files are "
            f"{', '.join(f.stem for f in sorted(where.glob('*.npz')))}"
        )


def _tensor(bits: NDArray[Any], name: str, **scale: Any) -> QTensor:
    """Return stored bits as a tensor: of a tf32 register the unit reads the upper 19 bits."""
    codes = bits >> 13 if name in ("tf32", "xf32") else bits
    return QTensor.from_codes(codes, _FORMATS[name], **scale)


def _diagonal(
    a: NDArray[Any], b: NDArray[Any], names: tuple[str, str], c: NDArray[Any], unit: str,
    out: str | None,
) -> NDArray[Any]:  # fmt: skip
    """Return the dot products of row i of `a` with row i of `b`."""
    parts = []
    for r in range(0, len(a), _ROWS):
        s = slice(r, r + _ROWS)
        start = np.repeat(c[s, None], len(c[s]), axis=1)
        left, right = (
            QTensor.from_codes(x, name) if name in ("uint8", "int8", "int16") else _tensor(x, name)
            for x, name in ((a[s], names[0]), (np.ascontiguousarray(b[s].T), names[1]))
        )
        d = matmul(left, right, target=unit, c=start, out_format=out)
        parts.append(np.diagonal(d))
    return np.concatenate(parts)


def _hardware(table: _Table, data: dict[str, Any], meta: list[dict[str, Any]]) -> None:
    for group in meta:
        name, chip = group["format"], _CHIPS[group["gpu"]]
        c = data[f"{name}_C"].view(np.float32)
        for out, dtype in (("fp32", "float32"), ("fp16", "float16")):
            if f"{name}_D_{out}" not in data:
                continue
            unit, start = f"nvidia.{chip}.mma", c.astype(dtype)
            if chip == "hopper" and name in ("E4M3", "E5M2") and out == "fp32":
                unit, start = "nvidia.hopper.wgmma", np.zeros_like(c)  # recorded with C = 0
            got = _diagonal(data[f"{name}_A"], data[f"{name}_B"], (name, name), start, unit, dtype)
            table.score(f"{unit} {name} -> {out}", got, data[f"{name}_D_{out}"])


def _cpu_int8(table: _Table, data: dict[str, Any], meta: dict[str, Any]) -> None:
    for group in meta["cases"]:
        a, b, c = (data[f"{group['id']}_{x}"] for x in "ABC")
        for name, unit in _CPU_UNITS.items():
            if (want := data.get(f"{group['id']}_D_{name}")) is not None:
                got = _diagonal(a, b, (a.dtype.name, b.dtype.name), c, unit, None)
                table.score(unit, got, want)


def _cpu_bf16(table: _Table, data: dict[str, Any], meta: dict[str, Any]) -> None:
    unit = "x86.vdpbf16ps"
    for group in meta["cases"]:
        if group["kind"] == "vdpbf16ps":
            a, b, c, d = (data[f"{group['id']}_{x}"] for x in "ABCD")
            got = matmul(_tensor(a, "bf16"), _tensor(b, "bf16"), target=unit, c=c.view(np.float32))
            table.score(unit, got, d, nan_bits=False)


def _mmasim(table: _Table, data: dict[str, Any], meta: list[dict[str, Any]]) -> None:
    for group in meta:
        target = _mmasim_target(group)
        ident, out = group["id"], _FORMATS[group["d"]]
        a, b, c, d = (data[f"{ident}_{x}"] for x in "ABCD")
        agree = data.get(f"{ident}_agree")
        for t in range(len(a)):
            scale_a, scale_b = {}, {}
            if group["scale"] is not None:
                both = {"scale_format": _FORMATS[group["scale"]], "block": group["block_size"]}
                scale_a = {"scale_codes": data[f"{ident}_SA"][t], "axis": 1, **both}
                scale_b = {"scale_codes": data[f"{ident}_SB"][t], "axis": 0, **both}
            left, right = _tensor(a[t], group["a"], **scale_a), _tensor(b[t], group["b"], **scale_b)
            start = c[t].view("f4" if group["c"] == "f32" else "f2").astype(out)
            got = matmul(left, right, target=target, c=start, out_format=out)
            table.score(
                target.name, got, d[t], agree=None if agree is None else agree[t],
                nan_bits=any(rule.nan == "ones" for _, rule in target.rules),
            )  # fmt: skip


def _mmasim_target(group: dict[str, Any]) -> Target:
    arch = group["arch"]
    name = _UNITS[arch, group["instruction"].removesuffix("_block_scale")]
    if group["scale"] is not None and group["a"] == group["b"] == "e2m1" and group["k_instr"] == 32:
        return get_target(name, kind="mxf8f6f4")
    small = group["a"] in ("fp16", "bf16")
    if arch in ("Hopper", "Blackwell", "RTX Blackwell") and group["scale"] is None:
        return get_target(name, group=group["k_instr"]) if group["a"] != "f32" else get_target(name)
    if arch == "CDNA3" and group["k_instr"] == 4 and small:
        return get_target(name, group=4)
    if arch in ("CDNA1", "CDNA2") and group["a"] == "bf16" and "_1k" not in group["qualifier"]:
        return get_target(name, group=2)
    return get_target(name)


def _documented(table: _Table, data: dict[str, Any], meta: list[dict[str, Any]]) -> None:
    """Replay groups that name their unit and its changes."""
    for group in meta:
        ident, unit = group["id"], " ".join([group["target"], *group["changes"]])
        try:
            target = get_target(group["target"], **group["changes"])
            for t, want in enumerate(data[f"{ident}_D"]):
                scales: list[dict[str, Any]] = [{}, {}]
                if group["scale"]:
                    both = {"scale_format": _FORMATS[group["scale"]], "block": group["block_size"]}
                    scales = [{"scale_codes": data[f"{ident}_S{x}"][t], **both} for x in "AB"]
                left, right = (
                    _tensor(data[f"{ident}_{x}"][t], group[x.lower()], axis=axis, **scale)
                    for x, axis, scale in zip("AB", (1, 0), scales, strict=True)
                )
                c, out = data[f"{ident}_C"][t], None
                if group["d"] != "s32":
                    c, out = c.view("f4" if group["c"] == "f32" else "f2"), _FORMATS[group["d"]]
                got = matmul(left, right, target=target, c=c, out_format=out)
                agree = data.get(f"{ident}_agree")
                table.score(
                    unit, got, want, agree=None if agree is None else agree[t],
                    nan_bits=group["nan"] == "bits",
                )  # fmt: skip
        except NumsimError as error:
            row = table.rows.setdefault(unit, SiliconRow(table.file, unit))
            row.first = row.first or f"group {ident}: {error}"


def _mmaemu(table: _Table, data: dict[str, Any], meta: list[dict[str, Any]]) -> None:
    for group in meta:
        unit = _PRESETS[group.get("preset") or group["profile"]]
        changes: dict[str, Any] = {}
        if group["kind"] != "instruction_chain":
            if not group["use_fast_accum"]:
                changes["promote_every"] = 128
            if group["split"] > 1:
                changes |= {"split_k": group["split"], "split_order": group["split_scheme"]}
        target, ident = get_target(unit, **changes), group["id"]
        for t, want in enumerate(data[f"{ident}_D"]):
            left = _tensor(data[f"{ident}_A"][t], group["a"])
            right = _tensor(data[f"{ident}_B"][t], group["b"])
            c = data.get(f"{ident}_C")
            start = None if c is None else c[t].view(np.float32)
            got = matmul(left, right, target=target, c=start)
            if group["kind"] == "scaled_mm":
                scale_a, scale_b, scale_d = (np.float32(s) for s in data[f"{ident}_scale"][t])
                got = epilogue(
                    got, alpha=scale_a * scale_b, out_format=_FORMATS[group["d"]],
                    scale_result=scale_d,
                )  # fmt: skip
            table.score(f"{unit} {group['kind']}", got, want)
