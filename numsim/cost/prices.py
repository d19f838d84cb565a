"""Energy of products from rows of cost: of one node and one source, or none at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from numsim.cost.table import Row
from numsim.errors import NumsimError
from numsim.float_state import known_floats

MARKS = "VSMU"  # from what was read in its source to what a user says


class Price(NamedTuple):
    """What one multiply-add, and one bit of DRAM, costs by one source.

    Parameters
    ----------
    mac_pj
        Energy of a multiply-add, pJ; None: the source does not price it.
    dram_pj_per_bit
        Energy of a bit moved, pJ; None likewise.
    node, source
        Of all figures in it.
    mark
        The weakest of their marks.
    """

    mac_pj: float | None
    dram_pj_per_bit: float | None
    node: str
    source: str
    mark: str


@known_floats
def price(
    rows: Iterable[Row], products: Iterable[tuple[str, str, str]]
) -> dict[tuple[str, str, str], Price]:
    """Return what products cost, all by one node and source: that which prices most of them.

    Parameters
    ----------
    rows
        As `load_costs` returns them.
    products
        (format of a, format of b, format of the accumulator) by name.

    Returns
    -------
    dict
        A price for each of `products`; none where no source prices any of them. Of sources that
        price equally many the first counts.

    Source
    ------
    A ``mac`` or ``pe`` row for just these formats; else ``mul`` of the formats and ``add`` of the
    accumulator, of one scope.

    Examples
    --------
    >>> from numsim.cost.table import load_costs
    >>> found = price(load_costs(), [("int8", "int8", "int32")])
    >>> one = found["int8", "int8", "int32"]
    >>> round(one.mac_pj, 3), one.node, one.dram_pj_per_bit
    (0.3, '45nm', 20.0)
    """
    wanted = list(dict.fromkeys(products))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.enabled and row.node not in ("normalised", "unknown"):
            groups.setdefault((row.node, row.source), []).append(row)
    best: dict[tuple[str, str, str], Price] = {}
    for group in groups.values():
        found = {product: _price(group, product) for product in wanted}
        if _counted(found) > _counted(best):
            best = found
    return best


def _counted(found: dict[tuple[str, str, str], Price]) -> int:
    return sum(one.mac_pj is not None for one in found.values())


def _price(group: list[Row], product: tuple[str, str, str]) -> Price:
    """Return the price of a product by rows of one node and source."""
    a, b, acc = product
    energies = [row for row in group if row.quantity == "energy"]
    used: list[Row] = []
    whole = [
        row
        for row in energies
        if row.op in ("mac", "pe") and row.formats == (a, b) and row.accumulator == acc
    ]
    if whole:
        used = whole[:1]
    else:
        mul = [row for row in energies if row.op == "mul" and row.formats == (a, b)]
        add = [row for row in energies if row.op == "add" and set(row.formats) == {acc}]
        pairs = [[m, s] for m in mul for s in add if m.scope == s.scope]
        used = pairs[0] if pairs else []
    dram = [row for row in group if row.quantity == "dram"][:1]
    marks = [row.mark for row in (used or group[:1]) + (dram if used else [])]
    return Price(
        sum(row.value for row in used) if used else None,
        dram[0].value / dram[0].bits if dram and dram[0].bits else None,
        group[0].node, group[0].source, max(marks, key=MARKS.index),
    )  # fmt: skip


@known_floats
def scaled(rows: Iterable[Row], factors: str, source: str) -> tuple[Row, ...]:
    """Return rows of one node as a user says they would be at another; their mark is U.

    Parameters
    ----------
    rows
        As `load_costs` returns them.
    factors
        ``45nm:7nm=0.2``: energy, power and area of rows of the first node times the factor.
    source
        Where the factor comes from; it stands in the source of each scaled row.

    Raises
    ------
    NumsimError
        Another form, a node that no row has, or no source.

    Examples
    --------
    >>> from numsim.cost.table import load_costs
    >>> rows = {r.id: r for r in scaled(load_costs(), "45nm:7nm=0.5", "a guess")}
    >>> row = rows["horowitz14.int8.mul"]
    >>> row.value, row.node, row.mark, row.source
    (0.1, '7nm', 'U', 'Horowitz, ISSCC 2014, scaled by the user from 45nm (a guess)')
    """
    rows = tuple(rows)
    nodes, _, text = factors.partition("=")
    old, _, new = (part.strip() for part in nodes.partition(":"))
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not old or not new or not 0 < factor < float("inf"):
        raise NumsimError(
            f"cost: scale_node is OLD:NEW=FACTOR with a factor above 0; got {factors!r:.60}; as in "
            "45nm:7nm=0.2"
        )
    if not source.strip():
        raise NumsimError(
            "cost: a factor between nodes needs its source; got none; give scale_source"
        )
    known = sorted({row.node for row in rows} - {"normalised", "unknown"})
    if old not in known:
        raise NumsimError(
            f"cost: scale_node begins with the node of a row; got {factors!r:.60}; nodes are "
            f"{', '.join(known)}"
        )
    words = f"scaled by the user from {old} ({source})"
    return tuple(
        row.model_copy(
            update={
                "value": row.value * factor, "node": new, "mark": "U",
                "source": f"{row.source}, {words}",
            }
        )
        if row.node == old and row.unit != "1"
        else row
        for row in rows
    )  # fmt: skip
