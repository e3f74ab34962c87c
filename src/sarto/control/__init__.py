"""Decisions: permissions, job states, the registry. No torch, no HTTP.

Read `context`, `jobs.tuning_jobs`, `scheduling.leases`, `runs.supervisor` and `runs.publishing`, then the other
resources.
"""
