"""Write the pages and pictures that follow from the tables of numsim, into docs/generated.

    python docs/generate.py

Nothing here holds a number of its own: every row, picture and help text is read from the package or
computed by it, so that the site cannot say what the code does not do.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pictures
import typer

import numsim as ns
from numsim import metrics
from numsim.cli import app
from numsim.data import bundled_text
from numsim.formats.names import ALIASES
from numsim.formats.table import TABLE
from numsim.number_line import draw_number_line
from numsim.quant import QUANTS
from numsim.quant.table import SOURCES
from numsim.sweep.columns import COLUMNS
from numsim.targets.words import MATURITIES, UNIT_FIELDS, explained
from numsim.verify.published import stored_rows
from numsim.vocabulary import OVERFLOWS, ROUNDINGS

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "generated"
DRAWN = [name for name in TABLE if not re.fullmatch(r"u?int\d+", name)]
DRAWN += ["int4", "int8", "q3.4", "uq0.8", "posit8_es2", "p3109_k8p4se"]

ROUNDING_WORDS = {
    "rne": "To the nearest value; a tie goes to the even code.",
    "rna": "To the nearest value; a tie goes away from zero.",
    "rtz": "Toward zero: the rest is cut off.",
    "rup": "Up, toward plus infinity.",
    "rdn": "Down, toward minus infinity.",
    "rto": "Exact values stay; any other goes to the neighbour whose last bit is 1, so that a "
    "second rounding to fewer bits is still right.",
    "sr": "Up or down by chance, the nearer value more often: right on average. The grey dots are "
    "single draws, the line is their mean.",
}
OVERFLOW_WORDS = {
    "saturate": "the largest finite value, for an infinity too",
    "special": "an infinity, else NaN, else the largest value: the first that the format has",
    "saturate_finite": "the largest finite value; an infinity stays one",
    "wrap": "modulo 2**bits, as an integer register; integers and fixed point only",
}


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return a Markdown table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines]


def _cell(cell: object) -> str:
    return str(cell).replace("|", "\\|").replace("\n", " ")


def _number(value: float) -> str:
    return f"{value:.6g}"


def formats_page() -> Iterator[str]:
    """Every named format with its limits, its source, and its values as a picture."""
    yield from ("# Formats", "")
    yield (
        "Written from `numsim/formats/table.py`. Precision counts the implicit bit; smallest is "
        "the smallest value above zero. Names of ml_dtypes, torch, ONNX, MLIR and CUDA are "
        "understood too."
    )
    yield ""
    whole = re.compile(r"(u?int)\d+")
    rows = []
    for name in ns.list_formats():
        if whole.fullmatch(name) and name not in ("int4", "int8", "int16", "uint4", "uint8"):
            continue
        f = ns.get_format(name)
        smallest = (
            min(v for v in (f.min_subnormal, f.min_normal) if v > 0) if f.kind != "table" else ""
        )
        rows.append(
            (f"`{name}`", f.bits, f.precision, f.bias if f.kind == "float" else "",
             _number(f.max), _number(smallest) if smallest else "",
             "yes" if f.has_inf else "", "yes" if f.has_nan else "")
        )  # fmt: skip
    heads = ("name", "bits", "precision", "bias", "largest", "smallest", "Inf", "NaN")
    yield from table(heads, rows)
    yield ""
    integers = [name for name in ns.list_formats() if whole.fullmatch(name)]
    yield (
        f"Integers: `{integers[0]}` and on, {len(integers)} in all. Names that are parsed: `q3.4`, "
        "`uq0.8` (fixed point), `float_e5m6` (any IEEE-like float), `p3109_k8p4se` (IEEE P3109), "
        "`posit8_es2`. Your own: a TOML file, or `ns.Format(...)`."
    )
    yield from ("", "## Storage rules with block scales", "")
    recipes = [
        (f"`{name}`", q.block, f"`{q.format}`", f"`{q.scale_format}`", q.scale_rule, SOURCES[name])
        for name, q in QUANTS.items()
    ]
    yield from table(("name", "block", "element", "scale", "scale rule", "source"), recipes)
    yield from ("", "## One by one", "")
    yield "Up to 16 bits with a picture: above, every finite value; below, magnitudes by exponent."
    yield "Subnormal numbers are shaded."
    for name in DRAWN:
        f = ns.get_format(name)
        image = f"{name}.{'svg' if f.bits <= 8 else 'png'}"  # 65,536 lines make a heavy drawing
        if f.bits <= 16:
            draw_number_line(f, OUT / "formats" / image)
        others = sorted(alias for alias, of in ALIASES.items() if of == name and len(alias) < 9)
        yield from ("", f"### {name}", "", f"{f.source}.")
        if others:
            yield f"Also called {', '.join(f'`{alias}`' for alias in others)}."
        if f.bits <= 16:
            yield from ("", f"![{name}: its finite values](formats/{image})")


def published_page() -> Iterator[str]:
    """Figures of the literature, beside those that `numsim verify published` computes."""
    yield from ("# Published figures", "")
    yield (
        "What can be computed without weights and data sets. `numsim verify published` computes "
        "every figure again, and fails where one has moved by more than its tolerance. A figure "
        "that does not agree with its source stays here, with the reason. Nothing published: a "
        "figure that was computed here first."
    )
    yield ""
    rows = []
    for row in stored_rows():
        value = row["value"]
        agrees = "" if value is None else "yes" if row["agrees"] else "**no**"
        rows.append(
            (row["statement"], "" if value is None else _number(value), _number(row["computed"]),
             _number(row["tolerance"]), agrees, row["source"], row.get("note") or row["how"])
        )  # fmt: skip
    heads = ("figure", "published", "computed", "tolerance", "agrees", "source", "how, or why not")
    yield from table(heads, rows)


def roundings_page() -> Iterator[str]:
    """Draw each rounding; say what the overflow policies do."""
    yield from ("# Roundings", "")
    yield (
        "Each picture is `ns.cast(x, 'int4', rounding=...)` for x from -3 to 3: x to the right, "
        "the value that is stored upward. The same seven words round to every format."
    )
    for word in ROUNDINGS:
        pictures.rounding(word, OUT / "roundings" / f"{word}.svg")
        yield from ("", f"## {word}", "", ROUNDING_WORDS[word], "")
        yield f"![{word}: stored value over x](roundings/{word}.svg)"
    yield from ("", "## Beyond the largest value", "")
    rows = []
    for word in OVERFLOWS:
        shown = []
        for value, name in ((500.0, "float8_e4m3fn"), (1e6, "float8_e5m2"), (9.0, "int4")):
            try:
                shown.append(f"{float(ns.cast(value, name, overflow=word)):g}")
            except ns.NumsimError:
                shown.append("refused")
        rows.append((f"`{word}`", OVERFLOW_WORDS[word], *shown))
    yield from table(("policy", "gives", "500 in E4M3", "1e6 in E5M2", "9 in INT4"), rows)


def units_page() -> Iterator[str]:
    """Every unit with its maturity, evidence, source and rules."""
    yield from ("# Units", "")
    yield "Written from `numsim/targets/table.py`. How well the rules of a unit are known:"
    yield ""
    yield from table(("maturity", "means"), [(f"`{w}`", words) for w, words in MATURITIES.items()])
    yield ""
    units = [ns.get_target(name) for name in ns.list_targets()]
    yield from table(
        ("unit", "maturity", "operands"),
        [
            (f"[`{u.name}`](#{anchor(u.name)})", u.maturity, ", ".join(k for k, _ in u.rules))
            for u in units
        ],
    )
    yield ""
    yield (
        "The least exponent to which NVIDIA's units align (`min_exponent`), and that products with "
        "a zero factor have no say in it, are as three models say; no recording shows them."
    )
    for u in units:
        yield from ("", f"## {u.name} {{ #{anchor(u.name)} }}", "")
        yield from table(
            ("", ""), [("maturity", u.maturity), ("evidence", u.evidence), ("source", u.source)]
        )
        own = {f.name: getattr(u, f.name) for f in fields(u) if f.name in UNIT_FIELDS}
        for key in ("promote_every", "split_k", "split_tile", "split_order"):
            default = next(f.default for f in fields(u) if f.name == key)
            if own[key] != default:
                yield from ("", f"`{key}` = {own[key]}: {UNIT_FIELDS[key]}.")
        yield ""
        yield from table(
            ("operands", "rule"), [(f"`{kind}`", f"`{rule!r}`") for kind, rule in u.rules]
        )
    yield from ("", "## Words of the rules", "")
    said = dict(pair for u in units for pair in _words(u))
    yield from table(("field", "means"), said.items())


def _words(unit: ns.Target) -> Iterator[tuple[str, str]]:
    rule = ""
    for heading, words in explained(unit):
        if not heading.startswith(" "):
            rule = heading
            yield f"**{rule}**", words
        else:
            yield f"{rule}.`{heading.strip()}`", words


def anchor(name: str) -> str:
    """Return a unit's name as an anchor."""
    return name.replace(".", "-").replace("_", "-")


def columns_page() -> Iterator[str]:
    """Every column of results.csv."""
    yield from ("# Columns of a sweep", "")
    yield "Written from `numsim/sweep/columns.py`, in the order of `results.csv`."
    yield ""
    kinds = {str: "text", int: "whole number", bool: "True or False", float: "number"}
    rows = [(f"`{c.name}`", kinds[c.type], c.unit, c.meaning) for c in COLUMNS]
    yield from table(("column", "type", "unit", "meaning"), rows)


def commands_page() -> Iterator[str]:
    """Write what -h prints for every command."""
    yield from ("# Commands", "", "What `numsim COMMAND -h` says, written from the code.")
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from ("", f"## numsim {name}", "", " ".join((command.help or "").split()), "")
        rows = []
        for item in command.params:
            if "--help" in item.opts:
                continue
            argument = item.param_type_name == "argument"
            shown = (item.metavar or item.name.upper()) if argument else ", ".join(item.opts)
            default = "" if item.default in (None, False) or item.required else item.default
            rows.append((f"`{shown}`", item.help or "", f"`{default}`" if default != "" else ""))
        yield from table(("argument or option", "meaning", "default"), rows)


MODULES = ("numsim.models", "numsim.nn", "numsim.train", "numsim.verify", "numsim.report")


def api_page() -> Iterator[str]:
    """Every public name with its docstring."""
    yield from (
        "# Python",
        "",
        "Every public name with what its docstring says; the examples are tested.",
    )
    seen: set[str] = set()
    yield from ("", "## numsim", "")
    yield from _entries(((name, getattr(ns, name)) for name in ns.__all__), seen)
    yield from ("", "## numsim.metrics", "")
    public = (
        (k, v) for k, v in vars(metrics).items() if getattr(v, "__module__", "") == metrics.__name__
    )
    yield from _entries(((k, v) for k, v in public if not k.startswith("_")), seen)
    for name in MODULES:
        module = import_module(name)
        yield from ("", f"## {name}", "", f"{(module.__doc__ or '').strip().splitlines()[0]}", "")
        yield from _entries(((key, getattr(module, key)) for key in module.__all__), seen)


def _entries(items: Iterable[tuple[str, object]], seen: set[str]) -> Iterator[str]:
    for _, item in items:
        path = f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', '')}"
        if isinstance(item, ModuleType) or not path.startswith("numsim.") or path in seen:
            continue
        seen.add(path)
        yield from (f"::: {path}", "")


GALLERY = {
    "tiny-llama": "The bundled language model", "training": "Training",
    "accumulator": "How wide an accumulator must be", "fp8-units": "FP8 on every unit",
    "four-bits": "Scales at four bits", "minilm": "A sentence encoder",
    "fp8-makers": "FP8 units of several makers", "probes": "Libraries, probed as black boxes",
    "units-apart": "Which units can be told apart",
    "operators": "An error budget by operator",
    "operators-sweep": "Operators and caches in low precision", "ranges": "Ranges of tensors",
    "two-units": "Two units on equal inputs", "networks": "A vision and a speech network",
    "scale-rules": "Rules of scales at four bits", "vectors": "Vectors for a test bench",
}  # fmt: skip


def gallery_page() -> Iterator[str]:
    """Copy the reports of the repository."""
    yield from ("# Gallery", "", "What is in `reports/`, as numsim wrote it.")
    folders = sorted(path.name for path in (ROOT / "reports").iterdir() if path.is_dir())
    for folder in folders:
        title = GALLERY.get(folder, folder)
        source, target = ROOT / "reports" / folder, OUT / "reports" / folder
        shutil.copytree(source, target)
        yield from ("", f"## {title}", "")
        pages = sorted(source.glob("*.md"))
        for page in pages:
            head = page.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            yield f"- [{head}](reports/{folder}/{page.name})"
        for page in sorted(target.glob("*.html")):
            name = f"{page.stem}-page.html"  # the site makes report.html of report.md
            page.rename(target / name)
            yield f"- [The same as one page, with filters and layers](reports/{folder}/{name})"
        for image in sorted(source.glob("*.png")):
            yield from ("", f"![{image.stem}](reports/{folder}/{image.name})")


def course_page() -> Iterator[str]:
    """Turn the course into Markdown."""
    lines = bundled_text().split("\n")
    code = False
    for i, line in enumerate(lines):
        after = lines[i + 1] if i + 1 < len(lines) else ""
        if line and set(line) <= {"=", "-"} and i and len(line) >= 4 and lines[i - 1]:
            continue  # the line under a heading
        if after and set(after) <= {"=", "-"} and len(after) >= 4 and line:
            if code:
                yield "```"
                code = False
            yield f"{'#' if after[0] == '=' else '##'} {line}"
            continue
        if line.startswith("    ") and not code and line.strip():
            yield "```python" if line.strip().startswith(">>>") else "```text"
            code = True
        elif code and line and not line.startswith("    "):
            yield from ("```", "")
            code = False
        yield line[4:] if code else re.sub(r"::$", ":", line).replace("``", "`")
    if code:
        yield "```"


PAGES = {
    "formats": formats_page, "roundings": roundings_page, "units": units_page,
    "columns": columns_page, "published": published_page, "commands": commands_page,
    "api": api_page, "gallery": gallery_page, "course": course_page,
}  # fmt: skip

if __name__ == "__main__":
    warnings.simplefilter("ignore", ns.UnvalidatedWarning)
    shutil.rmtree(OUT, ignore_errors=True)
    for name in ("formats", "roundings", "walks", "parts"):
        (OUT / name).mkdir(parents=True)
    pictures.draw_all(OUT)
    for name, page in PAGES.items():
        (OUT / f"{name}.md").write_text("\n".join(page()) + "\n", encoding="utf-8")
