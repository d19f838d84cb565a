"""Find out from outside how a machine multiplies and adds, and where two units part."""

from numsim.probe.probe import Probe, ProbeError, Witness, probe

__all__ = ["Probe", "ProbeError", "Witness", "probe"]
