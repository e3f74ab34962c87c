"""Storage of rows and bytes. Read `database` and its `tables`, then `buckets`."""
