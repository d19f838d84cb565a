"""Where a model is: a folder, or a checkpoint in the local cache of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from numsim.errors import NumsimError, near_names

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def find_folder(directory: str | Path) -> Path:
    """Return the folder of a model: `directory`, or what the local hub cache has by that name.

    A folder comes first; else ``org/name`` is looked for in ``HF_HUB_CACHE``, or in ``hub`` of
    ``HF_HOME``, at the revision of ``refs/main``. Nothing is downloaded.

    Raises
    ------
    NumsimError
        Neither a folder nor in the cache.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> find_folder(bundled_model_dir()) == bundled_model_dir()
    True
    """
    folder = Path(directory)
    if exists(folder, Path.is_dir):
        return folder
    name = folder.as_posix()
    given = (
        f"load_model: directory must be a folder with config.json and *.safetensors; got {name!r}"
    )
    if not exists(folder, os.path.lexists) and len(name) < 200 and _ID.fullmatch(name):
        snapshot = _snapshot(name)
        if snapshot is not None:
            return snapshot
        if "/" in name and not exists(folder.parent, Path.is_dir):
            others = [other for other in _cached() if other != name]
            raise NumsimError(
                f"{given}, which is no folder, and {hub_cache()} holds no model of that name"
                f"{near_names(name, others)}; hf download {name} puts it there (pip install "
                "huggingface_hub), numsim downloads nothing"
            )
    if exists(folder, Path.is_file):
        raise NumsimError(f"{given:.400}, which is a file; give the folder it lies in")
    beside: list[str] = []
    if exists(folder.parent, Path.is_dir):
        try:
            beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
        except OSError:
            beside = []
    near = near_names(folder.name[:100], beside)
    if not near and _ID.fullmatch(name) and "/" not in name:
        near = f", nor cached in {hub_cache()}; a model of the Hugging Face hub is written ORG/NAME"
    raise NumsimError(f"{given:.400}, which is not a folder{near}")


def model_name(folder: Path) -> str:
    """Return what results call a model: its folder, in the hub cache its name there.

    >>> model_name(Path("models--org--tiny/snapshots/0123"))
    'org/tiny'
    """
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return folder.name or folder.resolve().name


def hub_cache() -> Path:
    """Return the folder of the hub's cache, by the variables that huggingface_hub reads."""
    for variable, inner in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
    ):
        if os.environ.get(variable):
            return Path(os.path.expandvars(os.environ[variable])).expanduser() / inner
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def exists(path: Path, kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """Return whether there is such a file; names that no file can have are none."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


def _snapshot(name: str) -> Path | None:
    """Return the folder of a cached revision: of refs/main, else of the only one there."""
    repository = hub_cache() / f"models--{name.replace('/', '--')}"
    snapshots = repository / "snapshots"
    if not exists(snapshots, Path.is_dir):
        return None
    main = repository / "refs" / "main"
    if exists(main):
        revision = main.read_bytes()[:200].decode(errors="replace").strip()
        if re.fullmatch(r"\w[\w.-]*", revision) and exists(snapshots / revision, Path.is_dir):
            return snapshots / revision
        raise NumsimError(
            f"load_model: {main} must name a folder of {snapshots}; it says {revision[:60]!r}; "
            f"hf download {name} repairs the cache"
        )
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) > 1:
        raise NumsimError(
            f"load_model: the cache of {name} must say which revision is meant; {main} is missing "
            f"and {snapshots} holds {len(found)}; give the folder of one of them"
        )
    return found[0] if found else None


def _cached() -> list[str]:
    """Return the names of all models in the cache."""
    cache = hub_cache()
    if not exists(cache, Path.is_dir):
        return []
    return [
        path.name.removeprefix("models--").replace("--", "/", 1) for path in cache.glob("models--*")
    ]
