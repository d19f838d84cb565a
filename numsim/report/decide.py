"""Which case to build: the best within a budget, what is not told apart from it, the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from numsim.losses import SIGNIFICANT, Ties, losses_folder
from numsim.report.measures import BY_KEY
from numsim.report.tables import RUN, Results, records

EDGES = (4.5, 8.5, 16.5)  # bits per weight: what 4, 8 and 16 bits with their scales stay below
TOLERANCE = 1.0  # percent of perplexity
COSINE_TOLERANCE = 0.01  # of an encoder: distance of embeddings from the reference's
SHOWN = 0.005  # bits are shown to two decimals, and 4.5001 is within a budget of 4.5
COSTS = ("energy_pj", "area_ge", "bytes_moved")  # what "cheapest" means: what most cases have
SIGNED = {"lower": 1.0, "higher": -1.0}


@dataclass(frozen=True)
class Choice:
    """A case that answers a question; `tied`: cases within the budget not told apart from it."""

    question: str
    case: str | None
    tied: tuple[str, ...] = ()
    same: bool = False  # nothing gained over the answer before


ALIKE = ("bits_per_weight", "kl_nats", "perplexity", "dnll", "sqnr_cumulative_db",
         "embedding_cosine")  # fmt: skip


def equal_cases(cases: pd.DataFrame) -> list[list[str]]:
    """Return groups of cases whose figures are the same to the last digit: they are one finding.

    Scaled fixed point is an integer format, for example.
    """
    real = cases[~cases["failed"] & np.isfinite(cases[judged_by(cases)])]
    groups = real.groupby(list(ALIKE), sort=False, dropna=False)["case_id"]
    return [found for found in groups.agg(list) if len(found) > 1]


def runs_of(cases: pd.DataFrame) -> pd.Series:
    """Return for each case the number of its run: cases of one model, text and token count."""
    return cases.groupby(list(RUN), sort=False).ngroup()


def judged_by(cases: pd.DataFrame) -> str:
    """Return the measure that ranks: KL divergence, of an encoder the cosine of embeddings."""
    names = ("kl_nats", "embedding_cosine", "perplexity", "sqnr_cumulative_db")
    return next((name for name in names if np.isfinite(cases[name]).any()), names[0])


def best_first(cases: pd.DataFrame) -> pd.DataFrame:
    """Return the cases of each run, best first; what failed or was not measured last."""
    parts = []
    for _, run in cases.groupby(list(RUN), sort=False):
        key = judged_by(run)
        merit = SIGNED[BY_KEY[key].better] * run[key]
        parts.append(run.loc[merit.sort_values(kind="stable", na_position="last").index])
    return pd.concat(parts, ignore_index=True)


def candidates(cases: pd.DataFrame) -> pd.DataFrame:
    """Return the bit-exact cases that did not fail, best first; ties in order of bits."""
    key = judged_by(cases)
    real = cases[cases["exact"] & ~cases["failed"] & np.isfinite(cases[key])]
    ranked = real.assign(merit=SIGNED[BY_KEY[key].better] * real[key])
    ordered: pd.DataFrame = ranked.sort_values(["merit", "bits_per_weight"], kind="stable")
    return ordered


def why_none(cases: pd.DataFrame) -> str:
    """Return why none of the cases is recommended, and what to do about it."""
    if cases["exact"].any():
        return "No recommendation: no bit-exact case has figures."
    units = ", ".join(dict.fromkeys(cases["target"]))
    return (
        f"No recommendation: all cases are fake quantisation ({units}), rounded values added in "
        "float32, which says nothing about a unit. Sweep them with --targets and the unit that is "
        "to be built, or ideal.mac for float32 sums with their roundings. The cases below still "
        "rank the formats."
    )


def front(cases: pd.DataFrame, x: str, y: str) -> list[str]:
    """Return the cases that no other beats in both measures, in order of `x`.

    >>> frame = pd.DataFrame({"case_id": list("abc"), "bits_per_weight": [4, 8, 16],
    ...                       "kl_nats": [0.1, 0.2, 0.01]})
    >>> front(frame, "bits_per_weight", "kl_nats")
    ['a', 'c']
    """
    found = cases[np.isfinite(cases[x]) & np.isfinite(cases[y])]
    merit = SIGNED[BY_KEY[y].better] * found[y]
    if x == "area_ge":  # the model tells areas apart only where their ranges do
        beaten = [
            bool(((merit < own) & (found["area_low"] <= high)).any())
            for own, high in zip(merit, found["area_high"], strict=True)
        ]
        kept = found[~np.array(beaten, bool)].sort_values(x, kind="stable")
        return [str(case) for case in kept["case_id"]]
    ordered = found.assign(merit=merit).sort_values([x, "merit"], kind="stable")
    best = ordered["merit"].cummin()
    better = ordered["merit"] < best.shift(1, fill_value=math.inf)
    return [str(case) for case in ordered.loc[better, "case_id"]]


def tied_with(best: Mapping[str, Any], others: pd.DataFrame, ties: Ties) -> list[str]:
    """Return the cases that chance alone may put behind `best`.

    By the losses of single tokens, in pairs, where they stand beside the file; else where the
    difference is within two standard errors, both taken as independent.
    """
    key = judged_by(others)
    stderr = BY_KEY[key].stderr
    apart = (others[key] - best[key]).abs()
    error = np.hypot(others[stderr], best[stderr]) if stderr else pd.Series(math.nan, others.index)
    # In pairs the error is at most the sum of both, so beyond this no pair is tied.
    near = (apart <= math.sqrt(2) * SIGNIFICANT * error) | (apart == 0)
    found = []
    near &= others["case_id"] != best["case_id"]
    kept = others.assign(by_means=(apart <= SIGNIFICANT * error) | (apart == 0))[near]
    for other in records(kept):
        mark, by_means = ties.mark(best, other), other["by_means"]
        if mark in ("=", "~") or (mark == "?" and by_means):
            found.append(str(other["case_id"]))
    return found


class Answers:
    """The choices among the cases of one run, for any budget."""

    def __init__(self, results: Results, cases: pd.DataFrame) -> None:
        self.cases = candidates(cases)
        self.why_none = why_none(cases) if self.cases.empty else ""
        self.key = judged_by(cases)
        ties = Ties(results.source if losses_folder(results.source).is_dir() else None)
        self.steps = front(self.cases, "bits_per_weight", self.key)
        rows = {row["case_id"]: row for row in records(self.cases)}
        self.tied = {case: tied_with(rows[case], self.cases, ties) for case in self.steps}
        self.bits = dict(zip(self.cases["case_id"], self.cases["bits_per_weight"], strict=True))
        priced = {cost: int(np.isfinite(self.cases[cost]).sum()) for cost in COSTS}
        self.cost = max(COSTS, key=lambda cost: priced[cost]) if any(priced.values()) else None
        nodes = self.cases["energy_node"][self.cases["energy_pj"].notna()].nunique()
        if self.cost == "energy_pj" and nodes > 1:  # of two nodes: nothing is cheaper
            self.cost = None

    def choices(self, edges: Sequence[float] = EDGES, tolerance: float = TOLERANCE) -> list[Choice]:
        """Return the best case for each budget of bits, the smallest and the cheapest good one."""
        found: list[Choice] = []
        before: str | None = None
        for edge in edges:
            within = [case for case in self.steps if self.bits[case] <= edge + SHOWN]
            best = within[-1] if within else None
            tied = [c for c in self.tied.get(best or "", ()) if self.bits[c] <= edge + SHOWN]
            same = best is not None and best == before
            found.append(Choice(f"At most {edge:g} bits per weight", best, tuple(tied), same))
            before = best or before
        good = self.cases[self._within(tolerance)]
        words = (
            f"within {tolerance:g} % of the reference's perplexity"
            if self.key != "embedding_cosine"
            else f"with a cosine of at least {1 - COSINE_TOLERANCE * tolerance:g}"
        )
        found.append(self._least(good, "bits_per_weight", f"Smallest {words}"))
        if self.cost is not None:
            priced = int(good[self.cost].notna().sum())
            only = "" if priced == len(good) else f", of the {priced} with a price"
            title = f"Least {BY_KEY[self.cost].title} {words}{only}"
            found.append(self._least(good, self.cost, title))
        return found

    def _within(self, tolerance: float) -> pd.Series:
        if self.key == "embedding_cosine":
            return self.cases["embedding_cosine"] >= 1 - COSINE_TOLERANCE * tolerance
        return self.cases["perplexity_above"] <= tolerance

    def _least(self, good: pd.DataFrame, key: str, question: str) -> Choice:
        """Return the case that has least of a cost.

        Of those that the model of area has equal to it the best, and the others as tied.
        """
        good = good[np.isfinite(good[key])].sort_values(key, kind="stable")
        if good.empty:
            return Choice(question, None)
        alike = good[:1]
        if key == "area_ge":
            alike = good[good["area_low"] <= good["area_high"].iloc[0]].sort_values("merit")
        first, *tied = alike["case_id"]
        return Choice(question, str(first), tuple(tied))
