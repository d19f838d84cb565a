"""The columns of results.csv, as data: name, unit, meaning."""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """One column of results.csv."""

    name: str
    unit: str
    meaning: str
    type: type = float


COLUMNS: tuple[Column, ...] = (
    Column("case_id", "", "hash of everything that decides the numbers of the case", str),
    Column("model", "", "name of the model folder", str),
    Column("layer", "", "block number, 'outer': around the blocks, 'all': the whole network", str),
    Column("op", "", "matrix product within the block, empty for the whole network", str),
    Column("weight_format", "", "element format of the weights, or right operand; or 'mixed'", str),
    Column("act_format", "", "element format of the activations, or left operand", str),
    Column("granularity", "", "scales: weights+activations, one word where both agree", str),
    Column("block", "values", "block size of block scales", str),
    Column("scale_format", "", "format of the scales", str),
    Column("scale_rule", "", "how scales are chosen", str),
    Column("rounding", "", "rounding of the conversion", str),
    Column("target", "", "unit that multiplies and adds", str),
    Column(
        "exact", "", "True: the named unit's rules, bit for bit; False: fake quantisation", bool
    ),
    Column("bits_per_weight", "bits", "stored bits for each weight, scales included (all: *_proj)"),
    Column("bits_per_act", "bits", "the same for each activation, or left operand"),
    Column("M", "", "rows of the product: tokens of one batch; of qk and pv times heads", int),
    Column("N", "", "columns of the product", int),
    Column("K", "", "length of the dot products", int),
    Column("sqnr_local_db", "dB", "signal to error, this product alone on exact inputs"),
    Column("sqnr_cumulative_db", "dB", "signal to error, everything before emulated as well"),
    Column("mse", "", "mean squared error (cumulative)"),
    Column("max_abs", "", "largest absolute error (cumulative)"),
    Column("max_ulp", "ulp", "largest float32 ulp distance (cumulative)"),
    Column("cosine", "", "cosine similarity to the reference (cumulative)"),
    Column("saturation_rate", "", "share of activations clipped"),
    Column("underflow_rate", "", "share of nonzero activations stored as zero"),
    Column(
        "acc_overflow_rate",
        "",
        "share of accumulation steps that overflowed, saturated or wrapped: 0 where a bound proves "
        "it, else counted on the first rows; empty where counting needs a run: qk, pv, sr, tiles",
    ),
    Column("kl_nats", "nats", "mean KL divergence of the output distributions"),
    Column(
        "top1_agreement",
        "",
        "share of tokens with the same most likely successor; of a classifier share of texts with "
        "the same label (one score alone: yes against no)",
    ),
    Column("perplexity", "", "exp of the mean negative log likelihood of the text"),
    Column("energy_pj", "pJ", "energy of the products"),
    Column("seconds", "s", "wall time of the case"),
    Column("seed", "", "seed of stochastic rounding; other roundings do not use it", int),
    Column("numsim_version", "", "version of numsim", str),
    Column("text", "", "name of the evaluation text", str),
    Column("tokens", "", "tokens scored", int),
    Column("perplexity_reference", "", "perplexity of the float64 reference"),
    Column("dnll", "nats", "mean over tokens of NLL minus the reference's NLL"),
    Column("dnll_stderr", "nats", "standard error of dnll (paired, over tokens)"),
    Column("embedding_cosine", "", "encoders: mean cosine of sentence embeddings to the reference"),
    Column("embedding_cosine_min", "", "encoders: the smallest of those cosines"),
    Column("recipe", "", "file name of a recipe without .toml; empty: a case of the grid", str),
    Column(
        "recipe_digest",
        "",
        "every case: digest of its recipe, resolved for every product, and its seed, as "
        "Recipe.resolve(Model.gemm_names()).digest() and Run.recipe.digest() give it",
        str,
    ),
    Column("window_start", "", "all: what begins every window of the text, bos, eos or none", str),
    Column("ignored_keys", "", "keys of config.json that ignore_keys set aside", str),
    Column("unused_keys", "", "all: keys of config.json that only other software reads", str),
    Column("error", "", "all: why the case failed, whose figures are empty then", str),
    Column(
        "check",
        "",
        "all: digest of the figures of all lines of the case, by which --resume sees that none is "
        "missing, doubled or changed",
        str,
    ),
)

NAMES: tuple[str, ...] = tuple(c.name for c in COLUMNS)
