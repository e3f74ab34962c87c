"""Tuning jobs from request to row: `tuning_jobs`, `validation`, `plan`, `states`."""
