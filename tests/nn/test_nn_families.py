"""Families as trainable layers: the same bits as a run, or refused by what has no backward pass."""

import pathlib

import numpy as np
import pytest

from numsim import nn
from numsim.errors import UnsupportedError
from numsim.models import load_model

DATA = pathlib.Path(__file__).parents[1] / "data"
REFUSED = {
    "bart": "decoder_heads", "bert_mlm": "masked", "bloom": "alibi", "cohere": "norm",
    "cohere2": "norm", "deepseek_v2": "moe.group_best", "distilbert_classifier": "labels",
    "falcon_rw": "alibi", "gemma3_text": "layer_ropes", "glm": "pairs", "glm4": "pairs",
    "gpt_oss": "sinks", "granite": "residual_scale", "granitemoe": "residual_scale",
    "llama4_text": "qk_norm", "modernbert": "norm", "modernbert_trunk": "norm",
    "mpnet": "position_count", "mpt": "norm", "olmo": "clip_qkv", "olmo2": "residual",
    "olmo3": "residual", "olmoe": "qk_norm", "qwen2_moe": "moe.shared_gate",
    "roberta": "position_count",
    "roberta_mlm": "position_count", "smollm3": "layer_ropes", "umt5": "bucket_by_layer",
    "xlm_roberta": "position_count", "xlm_roberta_classifier": "position_count",
}  # fmt: skip


@pytest.mark.parametrize("folder", sorted((DATA / "families").iterdir()), ids=lambda p: p.name)
def test_a_layer_gives_the_bits_of_a_run_or_is_refused_by_name(folder):
    """A new field of `Arch` that the layer does not know must not be trained over."""
    model = load_model(folder)
    if folder.name in REFUSED:
        with pytest.raises(UnsupportedError, match=f"{REFUSED[folder.name]} .*train another"):
            nn.from_model(model)
        return
    ids = np.arange(22).reshape(2, 11) * 5 % 60 + 4
    layer, params = nn.from_model(model)
    given = [ids, ids[:, :4]] if model.arch.decoder_layers else [ids]
    run = model.run(ids, **({"decoder_tokens": ids[:, :4]} if len(given) == 2 else {}))
    want = run.logits if model.arch.head else run.hidden_states[-1]
    wide = {k: v.astype(np.float64) for k, v in params.items()}
    assert np.array_equal(nn.forward(layer, wide, *given)[0], want)
