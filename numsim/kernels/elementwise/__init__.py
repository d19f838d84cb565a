"""Functions of elements and of rows, and their derivatives, the same bits on every machine."""
