"""Find out from outside how a machine multiplies and adds, and where two units part.

The package is called itself: ``numsim.probe(...)`` is `numsim.probe.probe.probe`.
"""

import inspect
import sys
from types import ModuleType

from numsim.probe.apart import Apart, tell_apart
from numsim.probe.order import order_of
from numsim.probe.probe import Probe, ProbeError, Witness, probe

__all__ = ["Apart", "Probe", "ProbeError", "Witness", "order_of", "probe", "tell_apart"]


class _Called(ModuleType):
    """A function of the name of its package would hide it from ``import numsim.probe.offline``."""

    __call__ = staticmethod(probe)


sys.modules[__name__].__class__ = _Called
__signature__ = inspect.signature(probe)
