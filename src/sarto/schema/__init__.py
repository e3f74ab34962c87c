"""Messages of the API, as pydantic models. Read `wire` first, then `tuning_jobs`."""
