"""A run of a tuning job from claim to end: read `supervisor`, then `attempt`, then `publishing`."""
