"""Kernels that compute and count many outputs at once, where a rule's definition is slow."""
