"""The manifest beside results: what was measured, on what, by which code; it repeats the run."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from numsim.errors import NumsimError, SkippedWarning, printable, warn
from numsim.files import read_toml, replace_files
from numsim.formats import Format, get_format
from numsim.models import Model, Recipe
from numsim.models.rule import inline_toml, quant_table, target_table
from numsim.quant import Quant
from numsim.sweep.csv import ResultsFile
from numsim.sweep.prepare import Prepared
from numsim.sweep.recipes import DECLARED, NamedRecipe
from numsim.sweep.shards import shard_path
from numsim.sweep.spec import TABLE, SweepSpec
from numsim.targets import Target, get_target
from numsim.version import __version__

_NAMED = (("models", "model"), ("texts", "text"))  # hashes by name, and the column of the name
_LIBRARIES = ("numpy", "numba", "ml-dtypes", "pandas", "tokenizers")
_NOT_SETTINGS = {  # where and how fast a sweep ran, not what it measured
    "out", "resume", "force", "jobs", "scheduler", "shard", "memory_limit", "max_cases",
}  # fmt: skip
_MEASURED = (  # equal in all cases of one file, but for models and texts: hashes of all of them
    "limit_tokens", "window", "window_start", "batch", "ignore_keys", "cost", "scale_node",
    "scale_source", "bandwidth_gb_s", "peak_tmac_s", "stats",
)  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What `write` puts beside the results of a sweep.

    Attributes
    ----------
    path
        The file; None: nothing is written.
    settings
        Fields of the `SweepSpec` that are not the usual ones, recipes and units inside.
    record
        What they were measured on, and by.
    """

    path: Path | None
    settings: dict[str, Any]
    record: dict[str, Any]

    @classmethod
    def of(cls, plan: SweepSpec, runs: Sequence[Prepared]) -> Manifest:
        """Return the manifest of a prepared sweep."""
        settings = {
            name: _plain(name, getattr(plan, name))
            for name in SweepSpec.model_fields
            if name not in _NOT_SETTINGS and name in plan.model_fields_set
        }
        settings = {name: value for name, value in settings.items() if value is not None}
        first = [run.cases[0] for run in runs]
        measured = {name: _plain(name, getattr(plan, name)) for name in _MEASURED}
        if plan.cost is not None:
            measured["cost"] = hashlib.sha256(plan.cost.read_bytes()).hexdigest()[:16]
        record = {
            "numsim_version": __version__,
            "models": {printable(case.model): case.model_hash for case in first},
            "texts": {printable(case.text): case.text_hash for case in first},
            "measured": {name: value for name, value in measured.items() if value is not None},
            "seeds": list(plan.seeds),
            "cases": sum(len(run.cases) for run in runs),
            "code_hash": _code_hash(),
            "python": platform.python_version(),
            "libraries": {name: _version(name) for name in _LIBRARIES},
            "processor": _processor(),
            "system": platform.platform(),
            "command": shlex.join(["numsim", *sys.argv[1:]]) if _is_command() else "",
        }
        out = shard_path(plan.out, plan.shard)
        return cls(None if out is None else manifest_path(out), settings, record)

    def check(self, results: ResultsFile) -> None:
        """Raise NumsimError where the cases that a results file keeps are of another sweep.

        More formats, units or seeds may come to them; another model, text, version, or other
        tokens of it may not.
        """
        if not results.kept:
            return
        for what, name in _NAMED:
            for called in dict.fromkeys(row[name] for row in results.kept):
                if called not in self.record[what]:
                    raise _other(results.path, name, called, ", ".join(self.record[what]))
        for path in (results.path, *results.others):
            if path is None or not path.is_file():
                continue
            place = manifest_path(path)
            if not place.is_file():
                raise NumsimError(
                    f"sweep: {path} is kept by what its manifest says was measured, and there is "
                    f"no {place.name} beside it; put it back, or --force starts again"
                )
            self._check_record(path, record_of(place))

    def _check_record(self, path: Path | None, found: dict[str, Any]) -> None:
        for what, name in _NAMED:
            for called, digest in found.get(what, {}).items():
                if self.record[what].get(called, digest) != digest:
                    raise _other(path, name, f"{called} with other contents", "what is there now")
        before = found.get("measured", self.record["measured"])
        for name in _MEASURED:
            old, new = before.get(name), self.record["measured"].get(name)
            if old != new:
                raise _other(path, name, old, new)

    def write(self) -> None:
        """Write the file in one step.

        Raises
        ------
        NumsimError
            It cannot be written.
        """
        if self.path is None:
            return
        head = [
            "# What this sweep measured; numsim sweep --config with this file repeats it.",
            *(f"{name} = {inline_toml(value)}" for name, value in self.settings.items()),
            "",
            f"[{TABLE}]",
            *(f"{name} = {inline_toml(value)}" for name, value in self.record.items()),
        ]
        try:
            text = "\n".join(head) + "\n"
            replace_files({self.path: text.encode(errors="replace")})  # names may be no Unicode
        except OSError as error:
            raise NumsimError(
                f"sweep: cannot write {self.path}: {error.strerror}; name another results file, or "
                "free the place"
            ) from None

    def compare(self, record: dict[str, Any]) -> None:
        """Refuse to repeat a sweep on another model or text; warn of another version.

        Raises
        ------
        NumsimError
            A model or a text has other contents than in the manifest.
        """
        for what in ("models", "texts"):
            before, now = record.get(what, {}), self.record[what]
            if before and before != now:
                raise NumsimError(
                    f"sweep: a manifest repeats its run on the same {what}; it has "
                    f"{_listed(before)}, and there is {_listed(now)}; give that one, or settings "
                    f"without the table [{TABLE}]"
                )
        for name in ("numsim_version", "code_hash"):
            if record.get(name, self.record[name]) != self.record[name]:
                warn(
                    f"sweep: the manifest is of another numsim ({name} {record[name]}; this is "
                    f"{self.record[name]}): numbers may differ",
                    SkippedWarning,
                )
                return


def manifest_path(results: Path) -> Path:
    """Return the file beside results.

    >>> manifest_path(Path("results.csv")).name
    'results.manifest.toml'
    """
    return results.with_name(f"{results.stem}.manifest.toml")


def record_of(settings: object) -> dict[str, Any]:
    """Return what a manifest says was measured; nothing of other settings.

    Parameters
    ----------
    settings
        A file, or the tables that were in one.

    Raises
    ------
    NumsimError
        The file is not TOML.
    """
    tables = read_toml(settings, "sweep") if isinstance(settings, str | Path) else settings
    found = tables.get(TABLE, {}) if isinstance(tables, dict) else {}
    return found if isinstance(found, dict) else {}


def _other(path: Path | None, name: str, old: object, new: object) -> NumsimError:
    return NumsimError(
        f"sweep: {path} holds cases of another sweep: {name} was {printable(old)}, now "
        f"{printable(new)}; incompatible runs do not mix; name another file, or --force replaces it"
    )


def _listed(hashes: dict[str, str]) -> str:
    return ", ".join(f"{printable(name)} ({digest})" for name, digest in hashes.items())


def _plain(name: str, value: Any) -> Any:
    """Return a value as TOML has it, whatever files it came from inside."""
    if isinstance(value, tuple | list):
        return [_plain(name, one) for one in value]
    if isinstance(value, Quant):
        return _quant(value)
    if isinstance(value, Format):
        return _format(value)
    if isinstance(value, Target):
        return target_table(value)
    if isinstance(value, Model):
        return None if value.folder is None else str(value.folder.absolute())
    if isinstance(value, Recipe):
        return {"toml": value.to_toml()}
    if isinstance(value, NamedRecipe):
        return {k: v for k, v in value.model_dump(mode="json").items() if v}
    if value == DECLARED:
        return str(value)
    if name == "recipes":
        return {"name": value.stem, "toml": Recipe.from_toml(value).to_toml()}
    if isinstance(value, Path):
        return str(value.absolute()) if value.exists() else str(value)
    if isinstance(value, str) and value.endswith(".toml"):
        if name == "targets":
            return {"unit": get_target(value).to_toml()}
        return _format(get_format(value))
    return value


def _quant(quant: Quant) -> dict[str, Any]:
    """Return a table that is this `Quant` alone, and no format that is swept with other scales."""
    table = quant_table(quant)
    found = {"format": table} if isinstance(table, str) else table
    return found | {"granularity": quant.granularity}


def _format(fmt: Format) -> Any:
    """Return what a settings file has for a format: its name, or all of it as a table."""
    table = quant_table(Quant(fmt))
    return table if isinstance(table, str) else {"format": table["format"]}


@cache
def _code_hash() -> str:
    """Return a hash of the sources of numsim."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    """Return what the processor is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()}"


def _is_command() -> bool:
    place = Path(sys.argv[0])
    return (
        place.stem == "numsim"
        or place.resolve() == Path(__file__).parents[1] / "cli" / "__main__.py"
    )
