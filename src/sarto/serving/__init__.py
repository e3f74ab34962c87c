"""The doorway to generation, free of torch: `generator` (the seam), `worker_client` (a `Generator` that owns a child
process), `protocol` (what the two say to each other), `worker` (the child's entry point, the one file here that
loads the engine)."""
