"""Reports on a dataset before training: statistics, duplicates, the loss mask, a forecast."""
