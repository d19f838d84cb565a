"""The package has no circles of imports, and no module takes another one's private names."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numsim

ROOT = Path(numsim.__file__).parent


def _modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("numsim", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path):
    """Yield (module, name) of every import from numsim: in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numsim"):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("numsim"))


def test_no_circles():
    modules = _modules()
    graph = {}
    for module, path in modules.items():
        named = (f"{m}.{name}" if f"{m}.{name}" in modules else m for m, name in _imports(path))
        graph[module] = {name for name in named if name != module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"imports go round: {' -> '.join(error.args[1])}") from None


def test_import_loads_no_more_than_formats_and_units_need():
    code = """
import sys, numsim
late = [m for m in ("pandas", "pydantic", "matplotlib", "numsim.models") if m in sys.modules]
sys.exit(f"import numsim loads {late}" if late else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_sweep_is_called_and_imported_from():
    import numsim.sweep.columns as columns  # a function of that name would hide it

    assert callable(numsim.sweep)
    assert numsim.sweep.columns is columns
    assert "fields" in inspect.signature(numsim.sweep).parameters


def test_no_module_takes_private_names_of_another():
    taken = {
        f"{path.relative_to(ROOT)}: {module}.{name}"
        for path in _modules().values()
        for module, name in _imports(path)
        if name.startswith("_") and not name.startswith("__")
    }
    assert not taken
