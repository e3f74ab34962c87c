"""Computation on tensors: from examples to tokens, to an adapter, to scores and text. No HTTP, no users, no database.

Read `programs.tune` (a whole run, from top to bottom), then `dataset`, `rendering`, `models`, `ops`, `tuning`,
`serving`, `evaluation`.
"""
