"""Buckets and objects: `store` for callers, `blobs` for the bytes, `bucket_rows` for the names."""
