"""Evaluations of datasets as operations, and the report of a tuning job."""
