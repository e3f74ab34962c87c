"""Scheduling: `queue` chooses the next job, `leases` claims it, `capacity` computes the fit."""
