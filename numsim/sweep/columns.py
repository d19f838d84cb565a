"""The columns of results.csv, as data: name, unit, meaning."""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """One column of results.csv."""

    name: str
    unit: str
    meaning: str


COLUMNS: tuple[Column, ...] = (
    Column("case_id", "", "hash of everything that decides the numbers of the case"),
    Column("model", "", "name of the model folder"),
    Column("layer", "", "block number, or 'all' for the whole network"),
    Column("op", "", "matrix product within the block, empty for the whole network"),
    Column("weight_format", "", "element format of the weights"),
    Column("act_format", "", "element format of the activations"),
    Column("granularity", "", "scales: weights+activations, one word where both agree"),
    Column("block", "values", "block size of block scales"),
    Column("scale_format", "", "format of the scales"),
    Column("scale_rule", "", "how scales are chosen"),
    Column("rounding", "", "rounding of the conversion"),
    Column("target", "", "unit that multiplies and adds"),
    Column("exact", "", "True: bit-exact emulation of the named unit; False: fake quantisation"),
    Column("bits_per_weight", "bits", "stored bits for each weight, scales included"),
    Column("bits_per_act", "bits", "stored bits for each activation, scales included"),
    Column("M", "", "rows of the product: tokens of one batch"),
    Column("N", "", "columns of the product"),
    Column("K", "", "length of the dot products"),
    Column("sqnr_local_db", "dB", "signal to error, this product alone on exact inputs"),
    Column("sqnr_cumulative_db", "dB", "signal to error, everything before emulated as well"),
    Column("mse", "", "mean squared error (cumulative)"),
    Column("max_abs", "", "largest absolute error (cumulative)"),
    Column("max_ulp", "ulp", "largest float32 ulp distance (cumulative)"),
    Column("cosine", "", "cosine similarity to the reference (cumulative)"),
    Column("saturation_rate", "", "share of activations clipped"),
    Column("underflow_rate", "", "share of nonzero activations stored as zero"),
    Column("acc_overflow_rate", "", "share of accumulators that overflowed"),
    Column("kl_nats", "nats", "mean KL divergence of the output distributions"),
    Column("top1_agreement", "", "share of tokens with the same most likely successor"),
    Column("perplexity", "", "exp of the mean negative log likelihood of the text"),
    Column("energy_pj", "pJ", "energy of the products"),
    Column("seconds", "s", "wall time of the case"),
    Column("seed", "", "seed of stochastic rounding"),
    Column("numsim_version", "", "version of numsim"),
)

NAMES: tuple[str, ...] = tuple(c.name for c in COLUMNS)
