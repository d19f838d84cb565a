"""Static scales of activations from texts, as a recipe that names them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.models.gemm import rotated_by
from numsim.models.recipe import Recipe
from numsim.models.run import Model
from numsim.quant import Quant
from numsim.quant.calibrate import Calibration


@known_floats
def calibrated(
    model: Model, recipe: Recipe, windows: Iterable[ArrayLike | Mapping[str, ArrayLike]], *,
    rule: str = "amax", momentum: float = 0.9,
) -> Recipe:  # fmt: skip
    """Return a recipe whose activations have static scales, found on windows of tokens.

    The network runs in float64, one window after another, in memory that does not grow with them.

    Parameters
    ----------
    model
        The network.
    recipe
        Its rules; in those of stored matrices whose activations have a float32 scale of the tensor,
        alone or above narrow ones (NVFP4), `Quant.scale` fixes it: of rotated activations, where a
        rule rotates them. An expert that no token reaches keeps its rule.
    windows
        Token ids, each [T] or [B, T]; or arguments of `Model.run`, ``{"pixels": ...}``.
    rule, momentum
        As `numsim.quant.calibrate.Calibration`.

    Raises
    ------
    NumsimError
        Where no window came, or no rule can take a static scale.

    Examples
    --------
    >>> from numsim.models import bundled_model, named_recipe
    >>> import numpy as np
    >>> found = calibrated(bundled_model(), named_recipe("te_delayed"), [np.arange(8)])
    >>> found.rule("layers.0.q_proj").activations.scale > 0
    True
    """
    rules = recipe.check(model.gemm_names())
    wanted = {
        name: each.activations
        for name, each in rules.items()
        if isinstance(each.activations, Quant)
        and each.activations.has_one_scale
        and f"{name}.weight" in model.tensors
    }
    if not wanted:
        raise NumsimError(
            "calibrate: static scales are for activations with one float32 scale a tensor and no "
            "zero point; this recipe stores none so; use te_delayed, nvfp4, or "
            "Recipe.uniform('int8', target=...)"
        )
    seen = {name: Calibration(rule, momentum=momentum) for name in wanted}
    for tokens in windows:
        given: dict[str, Any] = dict(tokens) if isinstance(tokens, Mapping) else {"tokens": tokens}
        run = model.run(**given, taps=[f"{name}.in" for name in wanted])
        for name, stream in seen.items():
            if f"{name}.in" in run.taps:  # of experts, those that were chosen
                stream.update(rotated_by(np.asarray(run.taps[f"{name}.in"]), rules[name], -1))
    if not any(stream.tensors for stream in seen.values()):
        raise NumsimError("calibrate: scales come from windows; none came; give at least one")
    found: list[Any] = []
    for name, each in rules.items():
        if name in wanted and seen[name].tensors:
            scale = float(seen[name].scale(wanted[name]))
            each = replace(each, activations=replace(wanted[name], scale=scale))
        found.append((name, each))
    return replace(recipe, rules=tuple(found))
