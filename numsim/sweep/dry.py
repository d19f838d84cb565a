"""What a sweep would do: its cases, their multiply-adds, and about how long they take here."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from numsim.models import Rule
from numsim.models.gemm import RAW
from numsim.models.weights import shape_of
from numsim.quant import as_quant, quantize
from numsim.sweep.cases import Case, machine_of
from numsim.sweep.prepare import Prepared, prepare
from numsim.sweep.spec import SweepSpec, as_spec
from numsim.targets import matmul

_M, _N, _K = 256, 256, 512  # of the product that is timed
_OTHER = 1.5  # what a run does beside its products, and products alone, as a factor of time


def dry_lines(spec: SweepSpec | dict[str, Any] | Path | None, **fields: Any) -> list[str]:
    """Return the cases of a sweep as lines, with GMAC and an estimate of time, and totals.

    The estimate times one product of every rule on this machine, kernels warm; it holds within a
    factor of two or so.

    Raises
    ------
    NumsimError
        As the sweep itself.
    """
    plan = as_spec(spec, **fields)
    machine_of(plan)  # rows of cost that are wrong
    known: dict[Rule, float] = {}
    lines = []
    macs_of_all, seconds_of_all, count = 0.0, 0.0, 0
    for run in prepare(plan):
        for case in run.cases:
            macs, seconds = _case(run, case, known)
            macs_of_all, seconds_of_all = macs_of_all + macs, seconds_of_all + seconds
            count += 1
            where = f"{case.model} on {case.text}: " if _several(plan) else ""
            lines.append(f"{macs / 1e9:9.2f} GMAC {seconds:8.1f} s  {where}{case.label}")
    each = plan.jobs if plan.scheduler is None else 1
    jobs = f", {each} jobs" if each > 1 else ""
    lines.append(
        f"{macs_of_all / 1e9:9.2f} GMAC {seconds_of_all / each:8.1f} s  {count} cases{jobs}; "
        "nothing was run"
    )
    return lines


def _several(plan: SweepSpec) -> bool:
    return isinstance(plan.model, tuple) or isinstance(plan.text, tuple)


def _case(run: Prepared, case: Case, known: dict[Rule, float]) -> tuple[float, float]:
    """Return multiply-adds of the stored matrices of a case on all of the text, and seconds."""
    tokens = run.inputs.tokens.size
    rules = case.recipe().check(run.model.gemm_names())
    macs = seconds = 0.0
    for name, rule in rules.items():
        if f"{name}.weight" not in run.model.tensors:
            continue
        share = _experts(rules, name)
        work = float(tokens) * math.prod(shape_of(run.model.tensors, f"{name}.weight")) * share
        if rule not in known:
            known[rule] = _rate(rule)
        macs += work
        seconds += work / known[rule]
    return macs, seconds * _OTHER


def _experts(names: Iterable[str], name: str) -> float:
    """Return about which share of tokens an expert sees: as if a router sent each to two."""
    if ".experts." not in name:
        return 1.0
    head, _, rest = name.partition(".experts.")
    op = rest.partition(".")[2]
    count = sum(n.startswith(f"{head}.experts.") and n.endswith(f".{op}") for n in names)
    return min(1.0, 2 / max(count, 1))


def _rate(rule: Rule) -> float:
    """Return multiply-adds a second of a product by a rule, the second time it runs."""
    draw = np.random.default_rng(0)
    x, w = (draw.standard_normal(shape).astype(np.float32) for shape in ((_M, _K), (_N, _K)))
    left, right = (as_quant(side or RAW) for side in (rule.activations, rule.weights))
    b = quantize(w, right).T
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        matmul(quantize(x, left), b, target=rule.target, out_format=rule.out_format)
        best = min(best, time.perf_counter() - began)
    return _M * _N * _K / best
