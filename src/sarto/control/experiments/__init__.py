"""Experiments and their runs, as TensorBoard clients read them."""
