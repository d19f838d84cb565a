"""Experts: a narrow format sends tokens to other experts.

The checkpoint is a tiny random one of the tests; any Hugging Face folder of the families mixtral
and deepseek_v3 does.
"""

# %%
from pathlib import Path

import numpy as np

import numsim as ns
from numsim.metrics import sqnr_db

model = ns.load_model(Path(__file__).parents[1] / "tests" / "data" / "oracle" / "deepseek_v3")
ids = np.arange(12)
taps = ["layers.1.experts.*.rows", "layers.1.mlp.out"]
exact = model.run(ids, taps=taps)
int4 = ns.Recipe.uniform(ns.Quant("int4", "per_token"), target="ideal.int")
coarse = model.run(ids, int4, taps=taps)

# %% Which tokens each expert got, in float64 and in INT4.
for name in sorted(exact.taps.keys() | coarse.taps.keys()):
    if name.endswith(".rows"):
        print(name, exact.taps.get(name), coarse.taps.get(name))

# %% Latent attention and experts in INT4, one after the other: the last glob that matches wins.
plain, rule = ns.Rule(), int4.rule("layers.0.o_proj")
for what, globs in (
    ("latent attention", ["*_a_proj", "*_b_proj", "*o_proj"]),
    ("experts", ["*experts*"]),
    ("everything", ["*_proj"]),
):
    recipe = ns.Recipe((("*", plain), *((glob, rule) for glob in globs)))
    logits = model.run(ids, recipe).logits
    print(f"{what:17} in INT4: {sqnr_db(exact.logits, logits):5.1f} dB of the logits")
