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
    Column("block", "values", "block size of block scales; of tiles (rows, columns)", str),
    Column("scale_format", "", "format of the scales", str),
    Column("scale_rule", "", "how scales are chosen", str),
    Column("rounding", "", "rounding of the conversion", str),
    Column("target", "", "unit that multiplies and adds", str),
    Column(
        "exact", "", "True: the named unit's rules, bit for bit; False: fake quantisation", bool
    ),
    Column(
        "bits_per_weight",
        "bits",
        "stored bits for each weight, or value of the right operand, scales included; all: of the "
        "linears (*_proj); where they stay float32, of the keys and values (qk, pv), else of the "
        "products that are emulated",
    ),
    Column("bits_per_act", "bits", "the same for each activation, or value of the left operand"),
    Column("M", "", "rows of the product: tokens of one batch; of qk and pv times heads", int),
    Column("N", "", "columns of the product", int),
    Column("K", "", "length of the dot products", int),
    Column(
        "sqnr_local_db",
        "dB",
        "signal to error, this product alone on exact inputs; empty where it stays float32",
    ),
    Column(
        "sqnr_cumulative_db",
        "dB",
        "signal to error, everything before emulated as well; empty before the first emulated one",
    ),
    Column("mse", "", "mean squared error (cumulative)"),
    Column("max_abs", "", "largest absolute error (cumulative)"),
    Column(
        "max_ulp", "ulp", "max_abs over the float32 ulp of the largest reference value (cumulative)"
    ),
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
    Column(
        "energy_pj",
        "pJ",
        "energy of multiplying and adding, by one node and source; all: of all products; empty "
        "where one has no price, and for fake quantisation",
    ),
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
    Column(
        "ignored_keys",
        "",
        "keys of config.json that ignore_keys set aside or chose a reading of",
        str,
    ),
    Column("unused_keys", "", "all: keys of config.json that only other software reads", str),
    Column("error", "", "all: why the case failed, whose figures are empty then", str),
    Column(
        "check",
        "",
        "all: digest of the figures of all lines of the case, by which --resume sees that none is "
        "missing, doubled or changed",
        str,
    ),
    Column(
        "format",
        "",
        "what the case was asked for: a format, a storage rule such as nvfp4, or a recipe's name",
        str,
    ),
    Column(
        "emulated",
        "",
        "False: the product stays float32 in this case, or all of them, its keys and values too",
        bool,
    ),
    Column("kl_stderr", "nats", "standard error of kl_nats (over tokens)"),
    Column("embedding_cosine_stderr", "", "standard error of embedding_cosine (over sentences)"),
    Column("kl_p99_nats", "nats", "KL divergence that one token in a hundred exceeds"),
    Column("kl_max_nats", "nats", "KL divergence of the token that has the largest"),
    Column(
        "top5_agreement",
        "",
        "share of tokens whose most likely successor by the reference is among the five most "
        "likely",
    ),
    Column(
        "mean_signed_error",
        "",
        "mean(result - reference) / rms(reference), this product alone on exact inputs: the bias "
        "of rounding and of cut sums; empty where it stays float32",
    ),
    Column(
        "sqnr_depth_db",
        "dB",
        "signal to error of the residual stream after the layer, on the first batch; empty around "
        "the layers, and before the first emulated product",
    ),
    Column("accumulator", "", "what the unit adds in: float32, int32, exact, or 'mixed'", str),
    Column(
        "acc_swamp_rate",
        "",
        "nonzero addends that were lost whole, for each product of two numbers; counted on the "
        "first rows, with --stats",
    ),
    Column(
        "acc_peak_bits",
        "bits",
        "of the narrowest integer that holds every partial sum, in units of the smallest product; "
        "counted likewise; empty where scales inside the unit leave no common unit",
        int,
    ),
    Column(
        "products", "", "what a case of a grid emulates, as asked: linears, linears+qk+pv ...", str
    ),
    Column("kv_format", "", "how keys and values are stored, where that was asked for", str),
    Column("macs", "", "multiply-adds, of the first batch; all: of all products", int),
    Column(
        "bytes_weights",
        "bytes",
        "stored weights, scales included, read once; all: of the products that are emulated",
    ),
    Column("bytes_kv", "bytes", "the same of keys and values, the right operands of qk and pv"),
    Column("bytes_acts", "bytes", "the same of activations, the left operands"),
    Column("bytes_out", "bytes", "results of the product, written once, in the format it returns"),
    Column("bytes_float16", "bytes", "weights, keys, values and activations in float16, no scales"),
    Column(
        "macs_per_byte",
        "1/byte",
        "multiply-adds for each byte moved, every tensor once: the most that reuse can give",
    ),
    Column(
        "roofline_seconds",
        "s",
        "the longer of computing at the stated peak and moving the bytes at the stated bandwidth; "
        "all: sum of the emulated products",
    ),
    Column("roofline_speedup", "", "that time with float16 operands over this one"),
    Column("dram_pj", "pJ", "energy of moving the bytes once, by the source that prices energy"),
    Column("energy_node", "", "node of the figures behind energy_pj", str),
    Column(
        "area_ge",
        "GE",
        "model: gate equivalents of the unit for each product in a step; all: mean over the "
        "multiply-adds of emulated products; no ranking within 20 %, nor between 4-bit block "
        "formats",
    ),
    Column("cost_source", "", "source of the figures behind energy_pj", str),
    Column(
        "cost_mark",
        "",
        "their weakest mark: V read in the source, S quoted, M from memory, U a user's own",
        str,
    ),
)

NAMES: tuple[str, ...] = tuple(c.name for c in COLUMNS)
