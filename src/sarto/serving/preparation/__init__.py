"""Computations on user input, in processes that can be killed: `pool` is the client, `program` the server."""
