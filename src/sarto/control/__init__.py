"""Decisions: who may do what, what state a job is in, what the registry holds. No torch, no HTTP.

Read `context`, `tuning_jobs`, `leases`, `supervisor`, `publishing`, then the nouns.
"""
