"""The generation worker: `client` sends requests, `program` is the process."""
