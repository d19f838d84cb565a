"""Cases priced by figures of cost, and what the model of area can tell apart."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from numsim.cost import Row, price

EQUAL = 1.2  # times an area within which the model tells no units apart
FOUR_BIT = (0.7, 1.5)  # times the area of a 4-bit block format: the range of its true one


def repriced(rows: pd.DataFrame, costs: Iterable[Row]) -> pd.DataFrame:
    """Return the rows of a sweep with energies by other figures of cost.

    As the sweep does: all products of a case by one node and source; one without a price leaves
    the energy of its case empty. Fake quantisation has none.
    """
    costs, rows = tuple(costs), rows.copy()
    rows[["energy_pj", "dram_pj"]] = np.nan
    rows[["energy_node", "cost_source", "cost_mark"]] = ""
    real = rows[(rows["exact"].str.lower() == "true") & (rows["accumulator"] != "")]
    for _, case in real.groupby("case_id", sort=False):
        products, whole = case[case["layer"] != "all"], case[case["layer"] == "all"].index
        kinds = list(zip(products["act_format"], products["weight_format"],
                         products["accumulator"], strict=True))  # fmt: skip
        found = price(costs, kinds)
        macs, energies = products["macs"], []
        for at, kind in zip(products.index, kinds, strict=True):
            one = found.get(kind)
            if one is None or one.mac_pj is None:
                energies.append(np.nan)
                continue
            energies.append(float(macs[at]) * one.mac_pj)
            rows.loc[at, ["energy_node", "cost_source", "cost_mark"]] = (
                one.node, one.source, one.mark,
            )  # fmt: skip
        rows.loc[products.index, "energy_pj"] = energies
        if energies and not np.isnan(energies).any():
            every = [found[kind] for kind in kinds]
            rows.loc[whole, "energy_pj"] = sum(energies)
            rows.loc[whole, ["energy_node", "cost_source"]] = (every[0].node, every[0].source)
            rows.loc[whole, "cost_mark"] = max((p.mark for p in every), key="VSMU".index)
    return rows


def area_range(area: pd.Series, bits: pd.Series, block: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return from where to where an area of the model may truly lie.

    >>> low, high = area_range(pd.Series([600.0, 200.0]), pd.Series([8.0, 4.25]),
    ...                        pd.Series(["", "32"]))
    >>> [round(x) for x in low], [round(x) for x in high]
    ([548, 140], [657, 300])
    """
    small = (bits < 5) & (block != "")
    side = EQUAL**0.5  # two units within EQUAL of each other overlap
    low = area * np.where(small, FOUR_BIT[0], 1 / side)
    return low, area * np.where(small, FOUR_BIT[1], side)
