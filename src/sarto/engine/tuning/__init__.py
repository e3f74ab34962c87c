"""Training. Read `session` (from rows to checkpoints), `loop`, `trainer` (one optimiser step), `schedule`, then
`checkpoint` (the published adapter) and `keeper` (exact resume).
"""
