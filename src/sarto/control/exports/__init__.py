"""Exports of tuned models: `export_model` is the operation, `export_work` its program's spec and output."""
