"""Tensors: examples to tokens to adapter to scores to text. Knows no HTTP, no users and no database.

Read `run` (a whole run, told from top to bottom), then `data`, `families`, `ops`, `tuning`, `serving`, `evaluation`.
"""
