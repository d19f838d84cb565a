"""Innermost loops as LLVM IR: builders, readers of codes, one module for each rule."""
