"""What a probe found, in words and as TOML."""

from __future__ import annotations

from typing import Any

from numsim.targets.words import rule_words


def as_text(found: Any) -> str:
    """Return a probe on a page."""
    lines = [
        f"{found.right:,} of {found.asked:,} answers reproduced bit for bit; the machine was "
        f"called {found.calls:,} times, {found.tried:,} rules were tried"
    ]
    if found.failed:
        lines.append(f"no rule of numsim answers as the machine does: {found.failed}")
    if found.target is not None:
        kind, rule = found.target.rules[0]
        lines.append(f"{'nearest rule' if found.failed else 'rule'} for {kind}: {rule_words(rule)}")
    for name, witnesses in found.evidence.items():
        if name in found.undecided:
            continue
        some = "; ".join(
            f"{w.other}: {w.stimulus} gives {w.answer}, not {w.instead}" for w in witnesses[:2]
        )
        lines.append(f"  {name} is not {some}")
    lines += [f"  {name} is open: {why}" for name, why in found.undecided.items()]
    near = ", ".join(f"{name} {share:.1%}" for name, share in found.nearest[:4])
    lines.append(f"nearest units of the table: {near or 'none takes these formats'}")
    return "\n".join(lines)


def as_toml(found: Any) -> str:
    """Return a probe as a unit, its evidence as comments."""
    head = [f"# {line}" for line in as_text(found).splitlines()]
    body = "" if found.target is None else found.target.to_toml()
    return "\n".join(head) + "\n" + body
