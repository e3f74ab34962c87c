"""Batch predictions: `batch_predictions` is the resource, `batch_runner` executes them."""
