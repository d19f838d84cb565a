"""Parts of a sweep for several machines: a results file each, which a resumed sweep joins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from numsim.errors import NumsimError
from numsim.sweep.spec import SweepSpec

_PART = re.compile(r"(\d{1,6})/(\d{1,6})")


def own_part(items: Sequence[str], shard: str | None) -> list[str]:
    """Return every n-th item from the i-th on, of shard ``i/n``; None: all.

    Raises
    ------
    NumsimError
        A part of another form.

    Examples
    --------
    >>> own_part(["a", "b", "c", "d", "e"], "2/3"), own_part(["a"], None)
    (['b', 'e'], ['a'])
    """
    if shard is None:
        return list(items)
    found = _PART.fullmatch(shard)
    part, of = (int(n) for n in found.groups()) if found else (0, 0)
    if not 1 <= part <= of:
        raise NumsimError(
            f"sweep: shard is PART/OF, from 1/N to N/N; got {shard!r:.40}; the second of four "
            "is 2/4"
        )
    return list(items[part - 1 :: of])


def shard_path(out: Path | None, shard: str | None) -> Path | None:
    """Return the file of a part beside that of the whole.

    Examples
    --------
    >>> str(shard_path(Path("results.csv"), "2/4"))
    'results.2of4.csv'
    """
    own_part([], shard)
    if shard is None:
        return out
    if out is None:
        raise NumsimError("sweep: a shard is a file; got no out; name the file of the whole sweep")
    part, _, of = shard.partition("/")
    return out.with_name(f"{out.stem}.{int(part)}of{int(of)}{out.suffix}")


def other_logs(plan: SweepSpec) -> list[Path]:
    """Return the files of the parts of a sweep, which it joins where it resumes.

    Raises
    ------
    NumsimError
        There are some, and it does not resume.
    """
    if plan.out is None or plan.shard is not None or plan.force:
        return []
    name = re.compile(re.escape(plan.out.stem) + r"\.\d+of\d+" + re.escape(plan.out.suffix))
    try:
        found = sorted(p for p in plan.out.parent.iterdir() if name.fullmatch(p.name))
    except OSError:  # said when the file is opened
        return []
    if found and not plan.resume:
        raise NumsimError(
            f"sweep: {found[0]} is a part of {plan.out}; --resume joins the parts and computes "
            "what is missing, --force begins anew without them"
        )
    return found
