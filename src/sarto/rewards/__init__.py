"""Rewards of reinforcement tuning. A run and the API compute them with the same objects, so the numbers are the same.

No torch, no database and no HTTP server: models, URLs and user code are called through `Callers`.
"""
