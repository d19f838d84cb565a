"""What reports show of a case, as data: column, words, unit, and which way is better."""

from __future__ import annotations

import math
from typing import NamedTuple

from numsim.words import with_error


class Measure(NamedTuple):
    """A number of a case.

    `better`: "lower" or "higher"; empty where it is no merit. `axis`: offered as "x" or "y" of the
    trade-off. `scale`: "log" or, for what may be zero or negative, "symlog", linear within
    `linear` of zero. `form` and `scale` are understood by Python and by d3 alike.
    """

    key: str
    title: str
    unit: str
    form: str
    better: str
    meaning: str
    axis: str = ""
    scale: str = "linear"
    linear: float = 0.0
    stderr: str = ""

    @property
    def head(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


MEASURES: tuple[Measure, ...] = (
    Measure("bits_per_weight", "bits per weight", "", ".2f", "lower",
            "stored bits for each weight, scales included", "x"),
    Measure("bits_per_act", "bits per activation", "", ".2f", "lower",
            "the same for each activation", "x"),
    Measure("kl_nats", "KL", "nats", ".3g", "lower",
            "mean KL divergence of the output distributions from the float64 reference's", "y",
            "symlog", 1e-5, "kl_stderr"),
    Measure("kl_p99_nats", "KL, 99 %", "nats", ".3g", "lower",
            "99 percent of the tokens have a smaller KL divergence", "y", "symlog", 1e-5),
    Measure("kl_max_nats", "KL, largest", "nats", ".3g", "lower",
            "KL divergence of the worst token", "y", "symlog", 1e-5),
    Measure("perplexity_above", "ppl above ref.", "%", "+.3g", "lower",
            "perplexity over that of the float64 reference, minus one; below zero: chance", "y",
            "symlog", 0.1),
    Measure("perplexity", "perplexity", "", ".3f", "lower",
            "exp of the mean negative log likelihood of the text", "y", "log"),
    Measure("dnll", "dNLL", "nats", "+.3g", "lower",
            "mean over tokens of the negative log likelihood minus the reference's; bars: 95 %",
            "y", "symlog", 1e-3, "dnll_stderr"),
    Measure("top1_agreement", "top-1 agreement", "", ".2%", "higher",
            "share of tokens with the same most likely successor as the reference", "y"),
    Measure("top5_agreement", "top-5 agreement", "", ".2%", "higher",
            "share of tokens whose reference successor is among the five most likely", "y"),
    Measure("sqnr_cumulative_db", "SQNR of the output", "dB", ".2f", "higher",
            "signal to quantisation noise of the network's last output", "y"),
    Measure("worst_db", "worst product", "dB", ".2f", "higher",
            "lowest local SQNR of the products of the case", "y"),
    Measure("embedding_cosine", "cosine of embeddings", "", ".5f", "higher",
            "encoders: mean cosine of sentence embeddings to the reference's", "y", "linear", 0.0,
            "embedding_cosine_stderr"),
    Measure("embedding_cosine_min", "smallest cosine", "", ".5f", "higher",
            "encoders: the smallest of those cosines", "y"),
    Measure("macs", "MACs", "", ".4g", "", "multiplications of one batch: the sum of M N K"),
    Measure("bytes_weights", "bytes of weights", "bytes", ".4g", "lower",
            "stored weights, scales included"),
    Measure("bytes_acts", "bytes of activations", "bytes", ".4g", "lower",
            "stored activations of one batch, scales included"),
    Measure("bytes_out", "bytes of results", "bytes", ".4g", "lower", "results of one batch"),
    Measure("bytes_kv", "bytes of the KV cache", "bytes", ".4g", "lower",
            "stored keys and values, scales included"),
    Measure("bytes_float16", "bytes in float16", "bytes", ".4g", "",
            "weights, keys, values and activations in float16, without scales"),
    Measure("bytes_moved", "bytes moved", "bytes", ".4g", "lower",
            "weights, keys and values, activations, results, each once: a lower bound", "x", "log"),
    Measure("macs_per_byte", "MACs per byte", "", ".4g", "higher",
            "multiply-adds for each byte moved, every tensor once: the most that reuse can give"),
    Measure("roofline_seconds", "roofline time", "s", ".3g", "lower",
            "longer of computing at the stated peak and moving at the stated bandwidth", "x",
            "log"),
    Measure("roofline_speedup", "speed-up over float16", "", ".3g", "higher",
            "roofline time with float16 operands over this one"),
    Measure("area_ge", "area", "GE per MAC", ".0f", "lower",
            "structural model in gate equivalents; within 20 % units are equal, and 4-bit block "
            "formats are not ranked", "x"),
    Measure("energy_pj", "energy of a batch", "pJ", ".4g", "lower",
            "multiplying and adding in the products of one batch, by one node and source"),
    Measure("pj_per_mac", "energy", "pJ per MAC", ".3g", "lower", "that energy over the MACs", "x"),
    Measure("dram_pj", "energy of moving", "pJ", ".4g", "lower",
            "moving all bytes once, by the same source"),
    Measure("seconds", "time to emulate", "s", ".3g", "", "of this computer, not of the unit"),
)  # fmt: skip
BY_KEY = {measure.key: measure for measure in MEASURES}
DERIVED = ("perplexity_above", "pj_per_mac", "worst_db", "bytes_moved")  # by numsim.report
# What decides a case, in the order in which its recipe is read.
SETTINGS: dict[str, str] = {
    "case_id": "case", "recipe": "recipe", "format": "format", "weight_format": "weights",
    "act_format": "activations", "granularity": "granularity", "block": "block",
    "scale_format": "scale format", "scale_rule": "scale rule", "rounding": "rounding",
    "target": "unit", "products": "products", "kv_format": "keys and values", "seed": "seed",
    "recipe_digest": "recipe digest", "model": "model",
    "text": "text", "tokens": "tokens", "accumulator": "accumulator", "energy_node": "energy: node",
    "cost_source": "cost: source", "cost_mark": "cost: mark",
}  # fmt: skip


def with_chance(key: str, value: float, error: float) -> str:
    """Return a value with 95 % of chance to each side, as far as its error is known."""
    sign = "+" if BY_KEY[key].form.startswith("+") else ""
    return with_error(value, None if math.isnan(error) else 2 * error, sign)
