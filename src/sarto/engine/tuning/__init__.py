"""Training. Read `session` (from rows to checkpoints), `loop`, `trainer` (one optimiser step), `schedule`, then
`checkpoint_files` (the published adapter) and `checkpointing` (exact resume)."""
