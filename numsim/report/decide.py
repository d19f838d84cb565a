"""Which case to build: the best within a budget, what is not told apart from it, the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from numsim.losses import SIGNIFICANT, Ties, losses_folder
from numsim.report.measures import BY_KEY
from numsim.report.tables import RUN, Results

EDGES = (4.5, 8.5, 16.5)  # bits per weight: what 4, 8 and 16 bits with their scales stay below
TOLERANCE = 1.0  # percent of perplexity
COSINE_TOLERANCE = 0.01  # of an encoder: distance of embeddings from the reference's
COSTS = ("energy_pj", "area_ge", "bytes_moved")  # what "cheapest" means, the first there is
SIGNED = {"lower": 1.0, "higher": -1.0}


@dataclass(frozen=True)
class Choice:
    """A case that answers a question; `tied`: cases within the budget not told apart from it."""

    question: str
    case: str | None
    tied: tuple[str, ...] = ()
    same: bool = False  # nothing gained over the answer before


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
    merit = SIGNED[BY_KEY[key].better] * real[key]
    return (
        real.assign(merit=merit)
        .sort_values(["merit", "bits_per_weight"], kind="stable")
        .drop(columns="merit")
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
    ordered = found.assign(merit=merit).sort_values([x, "merit"], kind="stable")
    best = ordered["merit"].cummin()
    return ordered.loc[ordered["merit"] < best.shift(1, fill_value=math.inf), "case_id"].tolist()


def tied_with(best: pd.Series, others: pd.DataFrame, ties: Ties) -> list[str]:
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
    for at, other in others[near & (others["case_id"] != best["case_id"])].iterrows():
        mark = ties.mark(best.to_dict(), other.to_dict())
        by_means = bool(apart[at] == 0 or apart[at] <= SIGNIFICANT * error[at])
        if mark in ("=", "~") or (mark == "?" and by_means):
            found.append(str(other["case_id"]))
    return found


class Answers:
    """The choices among the cases of one run, for any budget."""

    def __init__(self, results: Results, cases: pd.DataFrame) -> None:
        self.cases = candidates(cases)
        self.key = judged_by(cases)
        ties = Ties(results.source if losses_folder(results.source).is_dir() else None)
        self.steps = front(self.cases, "bits_per_weight", self.key)
        rows = {case: self.cases[self.cases["case_id"] == case].iloc[0] for case in self.steps}
        self.tied = {case: tied_with(row, self.cases, ties) for case, row in rows.items()}
        self.bits = dict(zip(self.cases["case_id"], self.cases["bits_per_weight"], strict=True))
        self.cost = next((c for c in COSTS if np.isfinite(self.cases[c]).any()), None)
        nodes = self.cases["energy_node"][self.cases["energy_pj"].notna()].nunique()
        if self.cost == "energy_pj" and nodes > 1:  # of two nodes: nothing is cheaper
            self.cost = None

    def choices(
        self, edges: Sequence[float] = EDGES, tolerance: float = TOLERANCE
    ) -> list[Choice]:
        """Return the best case for each budget of bits, the smallest and the cheapest good one."""
        found: list[Choice] = []
        before: str | None = None
        for edge in edges:
            within = [case for case in self.steps if self.bits[case] <= edge]
            best = within[-1] if within else None
            tied = [c for c in self.tied.get(best or "", ()) if self.bits[c] <= edge]
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
        """Return the case that has least of a cost, and those that the model of area has equal."""
        good = good[np.isfinite(good[key])].sort_values(key, kind="stable")
        if good.empty:
            return Choice(question, None)
        least, tied = good.iloc[0], good.iloc[1:]
        tied = tied[tied["area_low"] <= least["area_high"]] if key == "area_ge" else tied[:0]
        return Choice(question, str(least["case_id"]), tuple(tied["case_id"]))
