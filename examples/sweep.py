"""Which layers suffer: a small sweep of the bundled model, worst operators first."""

# %%
import numsim as ns

rows = ns.sweep(
    {
        "formats": ["int8", "float8_e4m3fn"],
        "granularities": ["per_tensor", "per_channel+per_token"],
        "targets": ["ideal.fp32"],
        "limit_tokens": 510,
    }
)

# %%
layers = rows[rows.layer != "all"].sort_values("sqnr_local_db")
print(layers[["weight_format", "granularity", "layer", "op", "sqnr_local_db"]].head(8).to_string())
