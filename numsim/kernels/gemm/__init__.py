"""Whole matrix products: operands packed, the output covered, one module for each way."""
