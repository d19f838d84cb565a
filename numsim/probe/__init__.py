"""Find out from outside how a machine multiplies and adds, and where two units part."""

from numsim.probe.apart import Apart, tell_apart
from numsim.probe.probe import Probe, ProbeError, Witness, probe

__all__ = ["Apart", "Probe", "ProbeError", "Witness", "probe", "tell_apart"]
