"""What the products of a case move and cost: bytes, a roofline, energy and area."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from numsim.cost import Price, Row, Unit, area_ge, price
from numsim.errors import NumsimError
from numsim.formats import Format, get_format
from numsim.models import Rule
from numsim.models.gemm import RAW
from numsim.quant import as_quant, quantize
from numsim.sweep.grid import FAKE_QUANT
from numsim.targets import Plan, get_target, plan
from numsim.targets.rules import about, adds_integers
from numsim.targets.rules.limits import Adder
from numsim.targets.table import label

_BYTES = ("bytes_weights", "bytes_kv", "bytes_acts", "bytes_out", "bytes_float16")
_SUMS = ("macs", "energy_pj", "dram_pj")


@dataclass(frozen=True)
class Machine:
    """What a user states of the machine that the costs of a sweep are for.

    Attributes
    ----------
    rows
        Of cost, as `numsim.cost.load_costs` returns them.
    bandwidth_gb_s
        Of its memory, 10**9 bytes a second; None: no roofline.
    peak_tmac_s
        By format, 10**12 multiply-adds a second; under "" that of all formats.
    """

    rows: tuple[Row, ...] = ()
    bandwidth_gb_s: float | None = None
    peak_tmac_s: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, macs: float, moved: float, formats: Iterable[str]) -> float | None:
        """Return the time of a product by its slower operand format; None: not stated."""
        peaks = [self.peak_tmac_s.get(name, self.peak_tmac_s.get("")) for name in formats]
        stated = [peak for peak in peaks if peak is not None]
        if self.bandwidth_gb_s is None or len(stated) < len(peaks):
            return None
        return max(macs / (min(stated) * 1e12), moved / (self.bandwidth_gb_s * 1e9))


@dataclass
class Costs:
    """Adds up what the products of one case cost."""

    machine: Machine
    prices: dict[tuple[str, str, str], Price]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, machine: Machine, rules: Iterable[Rule]) -> Costs:
        """Price all products of a case by one source."""
        kinds = dict.fromkeys(rules)
        return cls(machine, price(machine.rows, (_kinds(r) for r in kinds if not _is_fake(r))))

    def product(self, rule: Rule, row: dict[str, Any], *, emulated: bool) -> dict[str, Any]:
        """Return the columns of one product, whose sizes and stored bits are in `row`.

        Takes ``right_values`` out of it, how many values the right operand has. `emulated`: by its
        rule, or since a cache stores its right operand.
        """
        m, n, k = row["M"], row["N"], row["K"]
        macs, out_values, right = m * n * k, m * n, row.pop("right_values")
        kv = row["op"].endswith(("qk", "pv"))
        moved = {
            "bytes_weights": None if kv else right * row["bits_per_weight"] / 8,
            "bytes_kv": right * row["bits_per_weight"] / 8 if kv else None,
            "bytes_acts": m * k * row["bits_per_act"] / 8,
            "bytes_out": out_values * get_format(rule.out_format).bits / 8,
        }
        total = sum(v for v in moved.values() if v is not None)
        sixteen = 2.0 * (right + m * k)
        wide = sixteen + moved["bytes_out"]  # what else changes is not the format's doing
        fake = _is_fake(rule)
        found = None if fake else self.prices.get(_kinds(rule))
        priced = found is not None and found.mac_pj is not None
        a, b, accumulator = _kinds(rule)
        own = {
            "macs": macs, **moved, "bytes_float16": sixteen, "macs_per_byte": macs / total,
            "accumulator": accumulator,
            "energy_pj": macs * found.mac_pj if found and found.mac_pj is not None else None,
            "dram_pj": 8 * total * found.dram_pj_per_bit
            if found and found.dram_pj_per_bit is not None else None,
            "energy_node": found.node if found and priced else None,
            "cost_source": found.source if found and priced else None,
            "cost_mark": found.mark if found and priced else None,
            "area_ge": None if fake or rule.is_plain else area_of(rule),
            "roofline_seconds": self.machine.seconds(macs, total, (a, b)),
        }  # fmt: skip
        own |= _speedup(own["roofline_seconds"], self.machine.seconds(macs, wide, ("float16",)))
        more = {"emulated": emulated, "plain": rule.is_plain, "wide": wide, "total": total}
        self.rows.append(own | more)
        return own

    def whole(self) -> dict[str, Any]:
        """Return the columns of the network.

        Multiply-adds and energy are those of all products, one without a price leaves energy
        empty. Bytes, roofline and area are of the products that are emulated, area as a mean over
        their multiply-adds.
        """
        if not self.rows:
            return {}
        emulated = [row for row in self.rows if row["emulated"]] or self.rows
        found: dict[str, Any] = {name: _sum(row[name] for row in self.rows) for name in _SUMS}
        for name in _BYTES:
            there = [row[name] for row in emulated if row[name] is not None]
            found[name] = sum(there) if there else None
        macs = sum(row["macs"] for row in emulated)
        found["macs_per_byte"] = macs / sum(row["total"] for row in emulated)
        found["accumulator"] = _one(row["accumulator"] for row in emulated)
        if found["energy_pj"] is not None:
            for name in ("energy_node", "cost_source"):
                found[name] = self.rows[0][name]  # one for all
            found["cost_mark"] = max((r["cost_mark"] for r in self.rows), key="VSMU".index)
        units = [row for row in emulated if not row["plain"]]
        area = _sum(None if r["area_ge"] is None else r["area_ge"] * r["macs"] for r in units)
        found["area_ge"] = None if area is None else area / sum(row["macs"] for row in units)
        found["roofline_seconds"] = _sum(row["roofline_seconds"] for row in emulated)
        sixteen = _sum(
            self.machine.seconds(row["macs"], row["wide"], ("float16",)) for row in emulated
        )
        return found | _speedup(found["roofline_seconds"], sixteen)


def _speedup(seconds: float | None, float16: float | None) -> dict[str, float | None]:
    known = seconds is not None and float16 is not None
    return {"roofline_speedup": float16 / seconds if known and seconds and float16 else None}


def _sum(values: Iterable[float | None]) -> float | None:
    """Return a sum; None where a part of it is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if known and len(known) == len(found) else None


def _one(words: Iterable[str]) -> str:
    found = set(words)
    return found.pop() if len(found) == 1 else "mixed"


def _is_fake(rule: Rule) -> bool:
    return not rule.is_plain and label(get_target(rule.target)) == FAKE_QUANT


@cache
def _planned(rule: Rule) -> Plan:
    left, right = as_quant(rule.activations or RAW), as_quant(rule.weights or RAW)
    zeros = np.zeros((64, 256), np.float32)
    a, b = quantize(zeros[:1], left, axis=-1), quantize(zeros, right, axis=-1).T
    return plan(rule.target, a, b, out_format=rule.out_format)


@cache
def _kinds(rule: Rule) -> tuple[str, str, str]:
    """Return the formats of the left operand, the right one and the accumulator."""
    left, right = as_quant(rule.activations or RAW), as_quant(rule.weights or RAW)
    found = _planned(rule)
    accumulator = found.out.label
    own, adder = about(found.rule).formats(found.rule), _adder(found, left.fmt, right.fmt)
    if adds_integers(found.rule):
        accumulator = f"int{found.rule.acc_bits}"
    elif own:
        accumulator = get_format(own[0]).label
    elif adder is not None and adder.align_bits is None:
        accumulator = "exact"
    return left.fmt.label, right.fmt.label, accumulator


def _adder(found: Plan, left: Format, right: Format) -> Adder | None:
    return about(found.rule).adder(found.rule, left, right)


@cache
def area_of(rule: Rule) -> float | None:
    """Return gate equivalents for each product of a rule's unit; None beyond the model.

    >>> round(area_of(Rule("float8_e4m3fn", "float8_e4m3fn", "nvidia.hopper.wgmma")))
    610
    """
    found = _planned(rule)
    left, right = as_quant(rule.activations or RAW), as_quant(rule.weights or RAW)
    formats = (left.fmt, right.fmt)
    adder = _adder(found, *formats)
    if adder is None:
        return None
    how: dict[str, Any] = adder._asdict()
    if found.inside:
        block = right.block or left.block
        if not isinstance(block, int):
            return None
        how |= {"scale_format": right.scale_format, "block": block}
    try:
        return area_ge(Unit(formats, **how))
    except NumsimError:
        return None
