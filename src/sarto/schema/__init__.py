"""What crosses a boundary, as pydantic messages. Read `wire` first, then `tuning_jobs`, then `runs`."""
