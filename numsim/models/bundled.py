"""The model that comes with the package."""

from __future__ import annotations

from numsim.data import bundled_model_dir
from numsim.models.load import load_model
from numsim.models.run import Model


def bundled_model() -> Model:
    """Return the small trained Llama that comes with the package.

    Returns
    -------
    Model
        As `load_model` reads it; `sweep` takes it where no model is named.

    Examples
    --------
    >>> bundled_model().name
    'tiny_llama'
    """
    return load_model(bundled_model_dir())
