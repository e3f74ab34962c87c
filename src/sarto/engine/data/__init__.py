"""From a dataset file to tokens with a loss mask. Read `tokenizer`, `template`, `render` (one renderer for training and
serving), `store` and `prepare` (each row once), `report`, and `batches` (what one optimiser step computes).
"""
