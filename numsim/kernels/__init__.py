"""Numba kernels: flat arrays and scalars in, arrays out. No validation, no dataclasses."""
