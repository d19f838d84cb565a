"""A decoder: the bundled Llama decodes, and its error grows layer by layer."""

# %%
import numpy as np

import numsim as ns
from numsim.data import bundled_model_dir
from numsim.metrics import sqnr_db
from numsim.models import Past

model = ns.load_model(bundled_model_dir())
ids = np.arange(300, 316)
recipe = ns.Recipe.uniform(ns.Quant("e4m3", "per_token"), target="nvidia.hopper.wgmma")

# %% Token by token, keys and values kept: the bits of one run over everything.
past = Past()
steps = [model.run(ids[i : i + 1], recipe, past=past).logits for i in range(len(ids))]
whole = model.run(ids, recipe)
print("decoding equals prefill:", np.array_equal(np.concatenate(steps, axis=1), whole.logits))
print("continued:", model.generate(ids, recipe, max_new_tokens=4)[-4:])

# %% The error of the residual stream, in dB below its power, after each layer.
exact = model.run(ids)
for layer, (got, want) in enumerate(zip(whole.hidden_states, exact.hidden_states, strict=True)):
    print(f"after {layer} layers: {sqnr_db(want, got):6.1f} dB")

# %% The same machine for attention too; the exception comes last and wins.
fp8 = ns.Rule(recipe.rule("layers.0.q_proj").activations, "e4m3", "nvidia.hopper.wgmma")
everything = ns.Recipe((("*", fp8), ("lm_head", ns.Rule())))
for what, run in (("linears", whole), ("attention too", model.run(ids, everything))):
    print(f"{what} in FP8: {sqnr_db(exact.logits, run.logits):.1f} dB of the logits")
print(everything.resolve(model.gemm_names()).digest())
