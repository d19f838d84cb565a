"""The bridge to torch: modules whose products numsim.nn computes, optimizers of numsim.train.

It has no numerics of its own. ``import numsim`` never imports torch.
"""

from numsim.errors import NumsimError

try:
    from torch import Tensor as _Tensor  # noqa: F401  (an empty folder named torch has none)
except ImportError as _error:

    class MissingTorchError(NumsimError, ImportError):
        """Torch is not installed."""

    raise MissingTorchError(
        f"numsim.torch needs torch, which is not installed ({_error}); pip install 'numsim[torch]'"
    ) from None

from numsim.torch.emulate import emulate, restore
from numsim.torch.optimizer import optimizer

__all__ = ["emulate", "optimizer", "restore"]
