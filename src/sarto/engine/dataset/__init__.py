"""From a dataset file to tokens with a loss mask. Read `prepare` (each row once), `tokenise` and `token_store`. The
renderer is in `engine.rendering`, packing in `engine.tuning.packing`."""
