"""Where bytes live. Read `database` and `tables`, then `buckets`."""
