"""Routing to experts against a plain NumPy reference, written expert by expert."""

import numpy as np
import pytest

from numsim.models.arch import Moe
from numsim.models.experts import route


def reference(logits, moe, correction):
    """Return experts and weights of one token; follows the text of DeepSeek-V3, section 2.1.2."""
    if moe.score == "softmax":
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
    else:
        scores = 1 / (1 + np.exp(-logits))
    choice = scores + (0 if correction is None else correction)
    size = moe.experts // moe.groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(moe.groups)]
    rank = [sum(sorted((choice[e] for e in group), reverse=True)[:2]) for group in groups]
    best = sorted(range(moe.groups), key=lambda g: -rank[g])[: moe.top_groups]
    candidates = [e for g in best for e in groups[g]]  # nobody else can be chosen
    chosen = sorted(candidates, key=lambda e: -choice[e])[: moe.top_k]
    weights = scores[chosen]
    if moe.normalise:
        weights = weights / (weights.sum() + (0 if moe.score == "softmax" else 1e-20))
    return chosen, weights * moe.scale


@pytest.mark.parametrize("seed", range(40))
def test_routing_follows_the_reference(seed):
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 2, 3, 4, 8]))
    per_group = int(rng.integers(2, 6))
    top_groups = int(rng.integers(1, groups + 1))
    moe = Moe(
        experts=groups * per_group,
        top_k=int(rng.integers(1, top_groups * per_group + 1)),
        intermediate=1,
        score="softmax" if seed % 3 == 0 else "sigmoid",
        normalise=bool(seed % 2),
        scale=float(rng.choice([1.0, 2.5])),
        groups=groups,
        top_groups=top_groups,
        correction=bool(seed % 4),
    )
    logits = rng.standard_normal((50, moe.experts))
    # to -3: every score plus correction of the open groups can be below 0
    shift = rng.uniform(-3, 1)
    correction = rng.normal(shift, 0.5, moe.experts) if moe.correction else None
    experts, weights = route(logits, moe, correction)
    for row in range(len(logits)):
        chosen, want = reference(logits[row], moe, correction)
        assert experts[row].tolist() == chosen
        np.testing.assert_allclose(weights[row], want, rtol=1e-12)
