"""Whole matrix products: packing of operands, cover of the output, one module for each way to compute."""
