"""Evaluation of tuned models. Read `job_evaluation` (the evaluation of a job), `evaluate_dataset` (the documented
metrics), `report.report` (the standard report), then `rows`, `generate`, `metrics` and `report.statistics`.

Loads no torch: models are called through `generate.Generate`.
"""
